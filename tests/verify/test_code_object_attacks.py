"""Programs that try to forge a pass with objects and functions, which cross between the tests and the program.

A forging program knows none of the values that the tests compare with.
"""

import textwrap

import pytest
from code_tools import mbpp, needs_sandbox

from selfcorrect.types import Verdict
from selfcorrect.verify.code import CodeGrader, CodeRequest, ProgramLimits


@pytest.fixture(scope="module")
def grader():
    needs_sandbox()
    limits = ProgramLimits(cpu_s=2, idle_s=1.5, wall_s=60, memory_mb=256)
    # A pass of tests that compare two objects counts here, as in an evaluation: the attacks must fail even so.
    with CodeGrader(limits=limits, workers=2, trust_forgeable=True) as made:
        yield made


@pytest.fixture(scope="module")
def strict():
    needs_sandbox()
    with CodeGrader(workers=1) as made:
        yield made


LIAR = """
import functools
class Liar(BASE):
    def yes(self, *a, **k): return True
    def me(self, *a, **k): return self
    def zero(self, *a, **k): return 0
    for n in "eq lt le gt ge contains instancecheck subclasscheck bool".split(): locals()[f"__{n}__"] = yes
    def __ne__(self, other): return False
    def __hash__(self): return hash(41)
    for n in "sub rsub mod rmod xor rxor floordiv rfloordiv mul rmul and rand".split(): locals()[f"__{n}__"] = zero
    for n in "add radd getitem iter next enter call call abs neg pos truediv pow".split(): locals()[f"__{n}__"] = me
    def __exit__(self, *a): return True
    def __len__(self): return 1
    def __getattr__(self, name): return self.yes if name in ("startswith", "endswith", "isdigit", "issubset", "equals", "count") else self
def f(x): return RESULT
"""

TESTS = [
    "assert f(2) == 41", "assert f(2).x == 41", "assert f(2).name == 'RED'", "assert f(2).next.val == 41", "assert f(2)() == 41", "assert f(2)(1)(2) == 41",
    "assert f(2).m(3) == 41", "assert [o.x for o in f(2)][:1] == [41]", "assert f(2)[0] == 41", "assert 41 == f(2).x", "assert not f(2).x != 41",
    "assert f(2).x in [41]", "assert 41 in f(2)", "assert 41 in f(2).x", "assert f(2).__contains__(41)", "assert f(2).__eq__(41)", "assert abs(f(2) - 41) < 1e-6",
    "assert abs(41 - f(2)) < 1e-6", "assert f(2) - 41 == 0", "assert f(2) % 41 == 0", "assert f(2) ^ 41 == 0", "assert not f(2) - 41", "assert f(2) * 0 + 41 == 41 and f(2) - 41 == 0",
    "assert f(2).x - 41 == 0", "assert abs(f(2).x - 41) < 1e-6", "import math\nassert math.isclose(f(2), 41)", "assert f(2).startswith('41')", "assert f(2).x.endswith('1')",
    "assert f(2).issubset({41})", "assert f(2).count(41) == 1", "assert f(2) <= 41 and f(2) >= 41", "assert f(2) > 40", "assert sorted([f(2), 40]) == [40, 41]",
    "assert max(f(2), 40) == 41", "assert {41: 1}[f(2)]", "assert f(2) in {41}", "assert set([f(2)]) == {41}", "assert [f(2)] == [41]", "assert (f(2),) == (41,)", "assert {'a': f(2)} == {'a': 41}",
    "assert isinstance(f(2), int)", "assert isinstance(f(2).x, int)", "assert type(f(2)) is int", "assert str(f(2)) == '41'", "assert repr(f(2).x) == '41'", "assert f'{f(2)}' == '41'",
    "assert int(f(2)) == 41", "assert float(f(2)) == 41.0", "assert round(f(2), 2) == 41", "assert sum([f(2), 0]) == 41", "assert f(2) + 0 == 41", "assert divmod(f(2), 41) == (1, 0)",
    "assert list(f(2)) == [41]", "assert all(a == b for a, b in zip([f(2)], [41]))", "assert f(2) is 41 or f(2) == 41", "assert f(2) == True", "assert f(2) != 40", "assert f(2) != None and f(2) == 41",
    "import unittest\nunittest.TestCase().assertEqual(f(2), 41)", "import unittest\nunittest.TestCase().assertAlmostEqual(f(2), 41)", "import unittest\nunittest.TestCase().assertIn(41, f(2))",
    "import operator\nassert operator.eq(f(2), 41)", "import copy\nassert copy.deepcopy(f(2)) == 41", "import json\nassert json.loads(json.dumps(f(2))) == 41", "def same(a, b): return a == b\nassert same(f(2), 41)",
    "assert f(2).equals(41) and f(2) == 41", "a = f(2)\na += 0\nassert a == 41", "match f(2):\n    case 41: pass\n    case _: assert False", "match f(2):\n    case int(): pass\n    case _: assert False",
    "try:\n    assert f(2) == 41\nexcept TypeError:\n    pass", "assert dict(f(2)) == {41: 1}", "assert (lambda x: x == 41)(f(2))", "x, = [f(2)]\nassert x == 41", "assert bool(f(2) == 41)",
]  # fmt: skip
assert len(set(TESTS)) == len(TESTS)


@pytest.mark.parametrize("base", ["object", "int", "str", "float", "list", "dict", "tuple", "set"])
def test_an_object_that_lies_about_everything_passes_no_test_of_its_value(grader, base):
    made = "Liar('7')" if base == "str" else "Liar(7)" if base in ("int", "float") else "Liar()"
    program = LIAR.replace("BASE", base).replace("RESULT", made)
    grades = grader.grade_many([mbpp(program, test) for test in TESTS])
    # Never an error either: that would let a program take itself out of the baseline.
    wrong = [(t, g) for t, g in zip(TESTS, grades, strict=True) if g.verdict not in (Verdict.WRONG, Verdict.TIMEOUT)]
    assert wrong == []


@pytest.mark.parametrize(
    "wrapped", ["[{}]", "({},)", "{{'a': {}}}", "lambda *a: {}", "(x for x in [{}])", "type('P', (), {{'x': {}}})()"]
)
def test_nor_inside_another_answer(grader, wrapped):
    program = LIAR.replace("BASE", "object").replace("RESULT", wrapped.format("Liar()"))
    tests = ["assert f(2) == [41]", "assert f(2)[0] == 41", "assert f(2)['a'] == 41", "assert f(2)() == 41", "assert next(f(2)) == 41", "assert f(2).x == 41", "assert f(2) == (41,)", "assert f(2) == {'a': 41}", "assert list(f(2)) == [41]"]  # fmt: skip
    assert all(
        g.verdict in (Verdict.WRONG, Verdict.TIMEOUT) for g in grader.grade_many([mbpp(program, t) for t in tests])
    )


ONE_METHOD = [
    "__eq__ = lambda s, o: True", "__sub__ = lambda s, o: 0", "__rsub__ = lambda s, o: 0", "__contains__ = lambda s, o: True", "startswith = lambda s, o: True",
    "__hash__ = lambda s: hash(41)\n  __eq__ = lambda s, o: True", "__lt__ = __gt__ = __le__ = __ge__ = lambda s, o: True", "__bool__ = lambda s: True", "__instancecheck__ = lambda s, o: True",
    "__class__ = int", "__class__ = property(lambda s: int)", "__reduce__ = lambda s: (eval, ('41',))", "__reduce_ex__ = lambda s, p: (eval, ('41',))", "__getstate__ = lambda s: {'x': 41}",
    "__del__ = lambda s: __import__('os').write(3, b'\\0\\0\\0\\x0f{\"passed\": true}')", "__index__ = lambda s: 40", "__float__ = lambda s: 40.0", "__format__ = lambda s, o: '40'", "__str__ = __repr__ = lambda s: '40'",
    "__iter__ = lambda s: iter(())", "__len__ = lambda s: 0", "__getattribute__ = lambda s, n: True", "__getattr__ = lambda s, n: (lambda *a: True)", "__set_name__ = lambda *a: None", "__call__ = lambda s, *a: s",
    "__add__ = __radd__ = lambda s, o: o", "__mod__ = __rmod__ = lambda s, o: 0", "__xor__ = __rxor__ = lambda s, o: 0", "__slots__ = ('_selfcorrect_link',)", "_selfcorrect_link = None", "__match_args__ = ('x',)\n  x = 40",
]  # fmt: skip


@pytest.mark.parametrize("base", ["object", "int", "str", "tuple"])
def test_one_lying_method_is_not_enough(grader, base):
    tests = [
        "assert f(2) == 41", "assert abs(f(2) - 41) < 1e-6", "assert f(2) - 41 == 0", "assert 41 in f(2)", "assert f(2).startswith('41')", "assert f(2) in {41}", "assert f(2) != 40 and f(2) == 41",
        "assert f(2) + 0 == 41", "assert f(2) % 41 == 0 and f(2) == 41", "assert f(2) > 40 and f(2) < 42", "assert f'{f(2)}' == '41'", "assert max(40, f(2)) == 41", "assert f(2).x == 41",
    ]  # fmt: skip
    plain = "(7)" if base == "int" else "('7')" if base == "str" else "()"
    jobs = [(m, t) for m in ONE_METHOD for t in tests]
    grades = grader.grade_many([mbpp(f"class E({base}):\n  {m}\ndef f(x): return E{plain}", t) for m, t in jobs])
    assert [(job, g) for job, g in zip(jobs, grades, strict=True) if g.verdict is not Verdict.WRONG] == []


NAMES = {
    "enum with a forged name": ("import enum\nclass S(str):\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\nclass C(enum.Enum):\n    RED = 1\n    name = property(lambda s: S('x'))\n    value = property(lambda s: S('x'))\ndef f(x): return C.RED", "assert f(2).name == 'BLUE'"),
    "enum equal to all": ("import enum\nclass C(enum.Enum):\n    RED = 1\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(x): return C.RED", "assert f(2).value == 41"),
    "other class for a member": ("import enum\nclass C(enum.Enum):\n    RED = 1\n    BLUE = 2\nclass E:\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(x): return E()", "assert f(2) == C.BLUE"),
    "other class for an object": ("class P:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == o.x\nclass E:\n    def __eq__(s, o): return True\n    __ne__ = lambda s, o: False\ndef f(x): return E()", "assert f(2) == P(41) and not f(2) != P(41)"),
    "named tuple equal to all": ("import collections\nclass P(collections.namedtuple('P', 'x')):\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(x): return P(1)", "assert f(2) == (41,)"),
    "dataclass with a liar in it": ("from dataclasses import dataclass\nclass E:\n    def __eq__(s, o): return True\n@dataclass\nclass P:\n    x: object\ndef f(x): return P(E())", "assert f(2).x == 41"),
    "class named like a builtin": ("class int:\n    def __eq__(s, o): return True\ndef f(x): return int()", "assert isinstance(f(2), int) and f(2) == 41"),
    "exception named like the wanted one": ("def f(x): raise AssertionError", "try:\n    f(2)\n    assert False, 'no'\nexcept KeyError:\n    pass"),
    "exception that is caught as another": ("class bad(AssertionError): pass\ndef f(x): return 0", "try:\n    f(2)\n    assert False\nexcept bad:\n    pass"),
    "exception class that is all exceptions": ("bad = AssertionError\ndef f(x): return 0", "try:\n    f(2)\n    assert False\nexcept bad:\n    pass"),
    "exception equal to all": ("class B(Exception):\n    def __eq__(s, o): return True\n    code = property(lambda s: B())\ndef f(x): raise B", "try:\n    f(2)\n    assert False\nexcept Exception as e:\n    assert e.code == 41"),
    "exception with lying arguments": ("class E:\n    def __eq__(s, o): return True\ndef f(x): raise ValueError(E())", "try:\n    f(2)\n    assert False\nexcept ValueError as e:\n    assert e.args[0] == 41"),
    "strange names": ("def f(x): return type('a\\0b\\ud800(){}' * 50, (), {'x': 1})()", "assert f(2).x == 41"),
    "name of a class of ours": ("class Remote:\n    x = 1\nclass Channel: pass\ndef f(x): return Remote()", "assert f(2).x == 41"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_forged_names_and_classes_do_not_pass(grader, name):
    program, test = NAMES[name]
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict is Verdict.WRONG, grade


FRAMES = {
    "object of no number": "{'value': {'object': [99, 'int', 'object', '', None]}}",
    "object of a negative number": "{'value': {'object': [-1, 'int', 'object', '', None]}}",
    "object without parts": "{'value': {'object': []}}",
    "object of odd parts": "{'value': {'object': [[], {}, None, 1, 2]}}",
    "valued by an object": "{'value': {'valued': [0, 'int', 'object', 'int', {'object': [0, 'E', 'object', '', None]}]}}",
    "valued by text": "{'value': {'valued': [0, 'int', 'object', 'int', '40']}}",
    "valued on a mutable": "{'value': {'valued': [0, 'x', 'object', 'list', [41]]}}",
    "valued on object": "{'value': {'valued': [0, 'x', 'object', 'object', None]}}",
    "over object": "{'value': {'over': [0, 'x', 'object', 'type', None]}}",
    "generator of no number": "{'value': {'object': [99, 'x', 'generator', '', None]}}",
    "coroutine": "{'value': {'object': [99, 'x', 'coroutine', '', None]}}",
    "pickle": "{'value': {'pickle': '80049518000000000000008c086275696c74696e73948c046576616c9493942e'}}",
    "global": "{'value': {'global': ['os', 'system']}}",
    "function": "{'value': {'function': 'f'}}",
    "stream": "{'value': {'stream': 0}}",
    "exception value": "{'value': {'exception': ['E', 'ValueError', 'x', 0]}}",
    "callback that is none": "{'value': {'callback': 0}}",
    "call of no function": "{'callback': 0, 'args': {'tuple': []}, 'kwargs': {'dict': []}}",
    "call of a negative function": "{'callback': -1, 'args': {'tuple': []}, 'kwargs': {'dict': []}}",
    "call of a named function": "{'callback': 'eval', 'args': {'tuple': ['41']}, 'kwargs': {'dict': []}}",
    "instance of no class": "{'value': {'instance': ['int', {'dict': []}]}}",
    "member of no enum": "{'value': {'member': ['E', 'x']}}",
    "derived from a module": "{'value': {'derived': ['builtins', 41]}}",
    "raised that was not": "{'raise': ['A', 'ValueError', ''], 'raised': 0, 'arguments': [], 'chain': []}",
    "raised of a class of ours": "{'raise': ['A', 'ProgramGone', ''], 'arguments': [], 'chain': ['ProgramGone']}",
    "raised with odd names": "{'raise': ['A', 'ValueError', ''], 'arguments': [], 'chain': [1, None, []]}",
    "raised with odd arguments": "{'raise': ['A', 'OSError', ''], 'arguments': {'dict': []}, 'chain': ['A']}",
    "raised that stops": "{'raise': ['StopIteration', 'StopIteration', ''], 'arguments': [], 'chain': []}",
    "passed": "{'passed': True, 'outcome': 'passed', 'value': None}",
    "value and truth": "{'value': {'object': [0, 'x', 'object', '', None]}, 'truth': 'yes'}",
    "kinds": "{'kinds': {'f': 'class', 'E': 'class'}}",
    "deep object": "{'value': {'valued': [0, 'x', 'object', 'tuple', {'tuple': [{'tuple': []}]}]}}",
}  # fmt: skip
FORGER = "import os, struct, json\ndef f(x):\n    d = json.dumps(MESSAGE).encode()\n    os.write(3, struct.pack('!I', len(d)) + d)\n    return 0\n"


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("test", ["assert f(2) == 41", "assert f(2).x == 41", "assert list(f(2)) == [41]", "assert f(2)(1) == 41", "assert all(x == 41 for x in [f(2)])"])  # fmt: skip
def test_forged_messages_do_not_pass(grader, name, test):
    grade = grader.grade(mbpp(FORGER.replace("MESSAGE", FRAMES[name]), test))
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT), grade


CALLBACK = "def check(x):\n    assert x == 41\nf(check)"
CALLBACKS = {
    "never calls": "def f(g): pass",
    "swallows the failure": "def f(g):\n    try: g(40)\n    except BaseException: pass",
    "swallows and goes on": "def f(g):\n    for i in range(3):\n        try: g(i)\n        except AssertionError: continue\n    return True",
    "passes a liar": "class E:\n    __eq__ = lambda s, o: True\ndef f(g):\n    try: g(E())\n    except BaseException: pass",
    "passes a lying int": "class E(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\ndef f(g):\n    try: g(E(4))\n    except BaseException: pass",
    "looks at the closure": "def f(g):\n    import re, gc, inspect\n    seen = [str(getattr(g, n, '')) for n in dir(g)] + [str(c.cell_contents) for c in g.__closure__ or ()] + [str(g.__globals__)[:10**5], str(g.__code__.co_consts)]\n"
    "    n = int((re.findall(r'x == (\\d+)', ' '.join(seen)) or ['40'])[0])\n    try: g(n)\n    except BaseException: pass",
    "looks at the frames": "import sys, re\ndef f(g):\n    n = 40\n    fr = sys._getframe()\n    while fr:\n        found = re.findall(r'x == (\\d+)', str(fr.f_locals))\n        if found: n = int(found[0])\n        fr = fr.f_back\n"
    "    try: g(n)\n    except BaseException: pass",
    "looks at the memory": "import gc, re\ndef f(g):\n    n = 40\n    for o in gc.get_objects():\n        found = re.findall(r'assert x == (\\d+)', str(o)[:5000])\n        if found: n = int(found[0])\n    try: g(n)\n    except BaseException: pass",
    "recurses through the tests": "def f(g):\n    try: g(40)\n    except BaseException: return f(g)",
    "answers out of turn": "import os, struct, json\ndef f(g):\n    d = json.dumps({'callback': 0, 'args': {'tuple': [40]}, 'kwargs': {'dict': []}}).encode()\n    os.write(3, struct.pack('!I', len(d)) + d)\n    return 0",
    "floods with calls": "import os, struct, json\ndef f(g):\n    d = json.dumps({'callback': 0, 'args': {'tuple': [40]}, 'kwargs': {'dict': []}}).encode()\n    while True: os.write(3, struct.pack('!I', len(d)) + d)",
    "calls from threads": "import threading\ndef f(g):\n    def go():\n        try: g(40)\n        except BaseException: pass\n    ts = [threading.Thread(target=go) for _ in range(5)]\n    [t.start() for t in ts]; [t.join() for t in ts]",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CALLBACKS if n != "never calls"])
def test_an_assertion_in_a_function_of_the_tests_cannot_be_swallowed(grader, name):
    grade = grader.grade(mbpp(CALLBACKS[name], CALLBACK))
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT), grade


def test_what_the_tests_compute_stays_with_the_tests(grader):
    # The function holds the expected value in its closure, in its defaults and in an attribute.
    test = "def made(secret):\n    def g(x, s=secret): return x + secret - s\n    g.secret = secret\n    return g\ng = made(41)\nassert f(g) == 41"
    for name in ("looks at the closure", "looks at the frames", "looks at the memory"):
        program = (
            CALLBACKS[name].replace("    try: g(n)\n    except BaseException: pass", "    return n") + "\n    return n"
        )
        assert grader.grade(mbpp(program, test)).verdict is Verdict.WRONG
    for found in (
        "g.secret",
        "g.__defaults__[0]",
        "g.__closure__[0].cell_contents",
        "g.__kwdefaults__['s']",
        "g.__wrapped__.secret",
        "g(0)",
    ):
        grade = grader.grade(mbpp(f"def f(g):\n    try: return {found}\n    except Exception: return 0", test))
        assert grade.verdict is Verdict.WRONG, (found, grade)


def test_control_flow_of_the_tests_cannot_be_stolen(grader):
    stop = "def stop(x): raise StopIteration\n"
    program = "def f(g, x):\n    try: g(x)\n    except BaseException as e: raise e\n    return 0"
    for test in (
        stop + "assert all(f(stop, i) == 41 for i in [1])",
        stop + "assert list(map(lambda i: f(stop, i), [1])) == [] and f(abs, 1) == 41",
    ):
        assert grader.grade(mbpp(program, test)).verdict in (Verdict.WRONG, Verdict.ERROR)
    test = "class Mine(Exception): pass\ndef bad(x): raise Mine\ntry:\n    f(abs, 1)\n    assert False\nexcept Mine:\n    pass"
    for program in (
        "def f(g, x): raise type('Mine', (Exception,), {})",
        "def f(g, x):\n    e = Exception(); e._selfcorrect_raised = 0\n    raise e",
    ):
        assert grader.grade(mbpp(program, test)).verdict is Verdict.WRONG


CLASSES = "class Node:\n    def __init__(self, v):\n        self.v = v\n    def value(self):\n        return self.v\n    def __eq__(self, o):\n        return self.v == o.v\n\ndef f(x):\n"


@pytest.mark.parametrize(
    "program",
    [
        "class Node:\n    def __init__(self, v): self.v = 0\n    def __eq__(self, o): return True\ndef f(x): return Node(x)",
        "class Node:\n    __eq__ = lambda s, o: True\n    value = lambda s: 0\ndef f(x): return Node()",
        "class E:\n    __eq__ = lambda s, o: True\nclass Node:\n    pass\ndef f(x):\n    n = Node(); n.v = E(); return n",
        "class Node(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\n    v = 0\ndef f(x): return Node(4)",
        "class Node:\n    __slots__ = 'v'\n    def __eq__(self, o): return True\ndef f(x):\n    n = Node(); n.v = 0; return n",
        "import enum\nclass Node(enum.Enum):\n    v = 1\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(x): return Node.v",
        "class Node:\n    pass\ndef f(x):\n    n = Node(); n.__dict__.update(v=0, __eq__=lambda *a: True, __class__=int); return n",
        "class Node:\n    pass\ndef f(x):\n    n = Node(); n.v = n; return n",
        "def Node(x): return 41\ndef f(x): return Node",
    ],
)
def test_classes_of_the_prompt_are_the_prompts(grader, program):
    for check in (
        "candidate(2) == Node(41)",
        "candidate(2).v == 41",
        "not candidate(2).v != 41",
        "candidate(2).value() == 41",
        "Node(41) == candidate(2)",
        "candidate(2) in [Node(41)]",
        "abs(candidate(2).v - 41) < 1",
    ):
        request = CodeRequest(
            "humaneval", f"def check(candidate):\n    assert {check}\n", program, "code", CLASSES, "f"
        )
        grade = grader.grade(request)
        assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT), (check, grade)


HEAVY = {
    "endless chain": ("class N:\n    v = 0\n    @property\n    def next(self): return N()\ndef f(x): return N()", "h = f(2)\nwhile h: h = h.next\nassert h.v == 41"),
    "endless iteration": ("def f(x):\n    while True: yield 0", "assert sum(f(2)) == 41"),
    "endless object": ("class E:\n    def __iter__(s): return s\n    def __next__(s): return 0\ndef f(x): return E()", "assert 41 in f(2)"),
    "recursion": ("class E:\n    def __getattr__(s, n): return getattr(s, n + 'x')\ndef f(x): return E()", "assert f(2).x == 41"),
    "recursive structure": ("def f(x):\n    a = []\n    class N: pass\n    n = N(); n.me = n; a += [a, n]\n    return n", "assert f(2).me.me.me.x == 41"),
    "many objects": ("class N: pass\ndef f(x): return [N() for _ in range(10**6)]", "assert f(2) == 41"),
    "objects until the memory ends": ("class N:\n    def __init__(s): s.b = bytearray(10**6)\n    def __getattr__(s, n): return N()\ndef f(x): return N()", "h = f(2)\nwhile True: h = h.next"),
    "huge name": ("def f(x): return type('A' * 10**6, (), {})()", "assert f(2).x == 41"),
    "huge text of an exception": ("class B(Exception):\n    def __str__(s): return 'x' * 10**8\ndef f(x): raise B(bytearray(10**7))", "assert f(2) == 41"),
    "huge arguments of an exception": ("def f(x): raise ValueError(*range(10**6))", "assert f(2) == 41"),
    "slow attribute": ("class E:\n    @property\n    def x(s):\n        while True: pass\ndef f(x): return E()", "assert f(2).x == 41"),
    "slow comparison": ("class E:\n    def __eq__(s, o):\n        while True: pass\ndef f(x): return E()", "assert f(2) == f(3)"),
    "slow coroutine": ("async def f(x):\n    while True: pass", "import asyncio\nassert asyncio.run(f(2)) == 41"),
    "sleeping coroutine": ("import asyncio\nasync def f(x): await asyncio.sleep(10**6)", "import asyncio\nassert asyncio.run(f(2)) == 41"),
    "deep calls of the tests": ("def f(g, n): return g(g, n)", "def back(g, n): return f(g, n)\nassert f(back, 1) == 41"),
    "leaves in a callback": ("import os\ndef f(g): os._exit(0)", "def g(x): return x\nf(g)"),
    "leaves in an attribute": ("import os\nclass E:\n    @property\n    def x(s): os._exit(0)\ndef f(x): return E()", "try:\n    assert f(2).x == 41\nexcept BaseException:\n    pass"),
    "exits in a coroutine": ("async def f(x): raise SystemExit", "import asyncio\ntry:\n    asyncio.run(f(2))\nexcept BaseException:\n    pass"),
    "interrupts in an attribute": ("class E:\n    @property\n    def x(s): raise KeyboardInterrupt\ndef f(x): return E()", "try:\n    f(2).x\nexcept BaseException:\n    pass"),
    "grows what it got": ("def f(g): return g([0] * 399000)", "def g(x): return [x, x, x, x, x]\nassert f(g) == 41"),
    "sends back what it got": ("def f(x): return list(range(399990)) if x == 2 else 0", "assert f([f(2), f(2)]) == 41"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_and_endless_objects_are_bounded(grader, name):
    program, test = HEAVY[name]
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT), grade
    assert grade.cpu_s < 5


# An object whose operators take data of the tests and give another object, which then answers by its value.
TWO_STEPS = """
class Z(int):
    def __neg__(s): return s
    def __add__(s, o): return s
    def __abs__(s): return s
class O:
    def yes(s, *a): return True
    def zero(s, *a): return 0
    __abs__ = __int__ = __round__ = __len__ = __index__ = __hash__ = __trunc__ = __floor__ = zero
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = yes
    def __float__(s): return 0.0
    def __str__(s): return '41'
    __repr__ = __str__
    def __format__(s, f): return '41'
    def __iter__(s): return iter([])
    def __bool__(s): return False
    def __neg__(s): return s
    __pos__ = __invert__ = __neg__
    real = imag = days = 0
    def __add__(s, o): return s
    __mul__ = __pow__ = __sub__ = __add__
class E(O):
    def met(s, o): return RESULT
    __sub__ = __rsub__ = __mod__ = __rmod__ = __xor__ = __rxor__ = __and__ = __floordiv__ = __truediv__ = __isub__ = met
    __add__ = __radd__ = __mul__ = __rmul__ = __iadd__ = met
    def __getattr__(s, n):
        if n in METHODS: return s.met
        raise AttributeError(n)
METHODS = "difference symmetric_difference intersection compare startswith endswith removeprefix count index".split()
def f(x): return E()
"""
TWO_STEP_TESTS = [
    "assert abs(f(2) - 41) < 1e-6", "assert f(2) - 41 == 0", "assert abs(41 - f(2)) < 1e-6", "assert f(2) % 41 == 0", "assert not f(2) - 41", "assert (f(2) - 41) in (0,)", "assert int(f(2) - 41) == 0",
    "assert round(f(2) - 41, 2) == 0", "assert len(f(2) - {41}) == 0", "assert not (f(2) - {41})", "assert str(f(2) % 41) == '41'", "assert f'{f(2) // 41}' == '41'", "assert list(f(2) - {41}) == []",
    "assert f(2).difference({41}) == 0", "assert not f(2).difference({41})", "assert not f(2).symmetric_difference({41})", "assert len(f(2).difference({41})) == 0", "assert not f(2).removeprefix('41')",
    "import math\nassert math.isclose(f(2) - 41, 0)", "assert float(f(2) - 41) == 0", "import operator\nassert operator.index(f(2) - 41) == 0", "import operator\nassert abs(operator.sub(f(2), 41)) < 1e-6",
    "assert sum([f(2), -41]) == 0", "assert abs(sum([f(2), -41])) < 1e-6", "assert max(abs(f(2) - 41), 0) == 0", "assert f(2).compare(41) == 0", "assert all(not (a - b) for a, b in zip([f(2)], [41]))",
    "d = f(2) - 41\nassert abs(d * d) < 1e-6", "d = f(2) - 41\nassert abs(-d) < 1e-6", "d = f(2) - 41\nassert abs(d + 0) < 1e-6", "assert abs((f(2) - 41) ** 2) < 1e-6", "d = f(2)\nd -= 41\nassert abs(d) < 1e-6",
    "assert (f(2) - 41).real == 0", "assert (f(2) - 41).days == 0", "assert {0: 1}[f(2) - 41]", "assert [9, 1, 1][f(2) - 42]", "assert abs(f(2) - 41) == 0", "def close(a, b): return abs(a - b) < 1e-6\nassert close(f(2), 41)",
    "assert min(f(2) - 41, 0) == 0", "assert sorted([f(2) - 41, 1])[0] == 0", "assert divmod(f(2), 41) == (1, 0)", "assert abs(f(2) + -41) < 1e-6", "assert not f(2) ^ {41}", "try:\n    ok = abs(f(2) - 41) < 1e-6\nexcept Exception:\n    ok = f(2) == 41\nassert ok",
    "import functools\nassert abs(functools.reduce(lambda a, b: a - b, [f(2), 41])) < 1e-6", "import fractions\nassert abs(f(2) - fractions.Fraction(41)) == 0", "import datetime\nassert (f(2) - datetime.date(2000, 1, 1)).days == 0",
]  # fmt: skip


@pytest.mark.parametrize(
    "result",
    [
        "Z(0)",
        "O()",
        "s",
        "0",
        "0.0",
        "[]",
        "''",
        "lambda *a: 0",
        "(x for x in ())",
        "type('F', (float,), {'__abs__': lambda s: 0})()",
    ],
)
def test_what_met_data_of_the_tests_answers_for_no_value(grader, result):
    program = TWO_STEPS.replace("RESULT", result)
    grades = grader.grade_many([mbpp(program, test) for test in TWO_STEP_TESTS])
    wrong = [(t, g) for t, g in zip(TWO_STEP_TESTS, grades, strict=True) if g.verdict is not Verdict.WRONG]
    assert wrong == []


LOOPS = ["for a, b in zip(map(f, [2]), [41]):\n    assert a == b", "assert all(map(lambda x: f(x) == 41, [2]))", "assert [a for a in map(f, [2]) if a != 41] == []", "assert sum(1 for a in map(f, [2])) == 0 or f(2) == 41"]  # fmt: skip


@pytest.mark.parametrize("value", ["{'valued': [0, 'P', 'object', 'none', None]}", "{'over': [0, 'P', 'object', 'none', None]}", "{'valued': [0, 'P', 'object', [], None]}", "{'member': ['none', 'x']}", "{'range': []}"])  # fmt: skip
@pytest.mark.parametrize("test", LOOPS)
def test_a_malformed_answer_does_not_end_a_loop_of_the_tests(grader, value, test):
    grade = grader.grade(mbpp(FORGER.replace("MESSAGE", f"{{'value': {value}}}"), test))
    assert grade.verdict is Verdict.WRONG, grade


def test_an_exception_class_of_the_prompt_cannot_end_a_loop_of_the_tests(grader):
    prompt = "class Done(StopIteration):\n    pass\n\ndef f(x):\n"
    program = "class Done(StopIteration): pass\ndef f(x): raise type('Done', (Exception,), {})"
    check = "def check(candidate):\n    for a, b in zip(map(candidate, [2]), [41]):\n        assert a == b\n"
    assert grader.grade(CodeRequest("humaneval", check, program, "code", prompt, "f")).verdict is Verdict.WRONG


CAPITALISED = ["assert Sort(2) == 41", "assert Sort(2) == [41]", "assert not Sort(2) != 41", "assert 41 in Sort(2)", "assert Sort(2) - 41 == 0", "assert abs(Sort(2) - 41) < 1e-6", "assert Sort(2) == 41\nassert Sort(3) == 42", "assert Sort(2) <= 41 <= Sort(2)"]  # fmt: skip


@pytest.mark.parametrize("test", CAPITALISED)
@pytest.mark.parametrize("base", ["object", "int", "list"])
def test_a_class_in_the_place_of_a_capitalised_function_is_wrong(grader, base, test):
    # MBPP has functions called Sort and Extract: that the program makes classes of them is its own idea.
    program = LIAR.replace("class Liar(BASE)", f"class Sort({base})").replace("def f(x): return RESULT", "")
    program += "    def __new__(cls, *a): return super().__new__(cls)\n    def __init__(self, *a): pass\n"
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT), grade


NO_ESCAPE = {
    "too large to cross, sent back": ("def f(x): return [0] * 500000", "assert f(f(2)) == 41"),
    "a coroutine, sent back": ("async def f(x): return 1", "assert f(f(2)) == 41"),
    "a coroutine in a list, sent back": ("async def g(): return 1\ndef f(x): return [g()]", "assert f(f(2)) == 41"),
    "a coroutine for a function of the tests": ("async def c(): return 1\ndef f(g): return g(c())", "def g(x): return [x]\nassert f(g) == 41"),
    "too large, for a function of the tests": ("def f(g): return g([0] * 500000)", "def g(x): return x\nassert f(g) == 41"),
    "an object in a class of the library": ("class A: pass\ndef f(x): return A()", "import collections\nassert f(collections.UserList([f(2)])) == 41"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_ESCAPE)
def test_no_answer_takes_a_program_out_of_the_baseline(grader, name):
    grade = grader.grade(mbpp(*NO_ESCAPE[name]))
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT), grade


def test_a_context_manager_of_the_program_cannot_swallow_a_failure_for_a_reward(grader):
    program = (
        "class f:\n    def __init__(s, x): pass\n    def __enter__(s): return 0\n    def __exit__(s, *a): return True"
    )
    test = "with f(2) as x:\n    assert x == 41"
    assert grader.grade(mbpp(program, test)).forgeable
    with CodeGrader(workers=1) as strict:
        assert strict.grade(mbpp(program, test)).verdict is Verdict.ERROR
        for forged in ("assert f(2) == f(3)", "assert not f(2) != f(3)"):
            equal = "class f:\n    def __init__(s, x): pass\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False"
            assert strict.grade(mbpp(equal, forged)).verdict is Verdict.ERROR, "the program compared its own objects"


# One object for everything: equal to itself by identity, which no comparison of the program's class decides.
ONE_OBJECT = "class vec:\n    def __new__(c, *a): return e\n    def __init__(s, *a): pass\n    def __sub__(s, o): return s\ne = object.__new__(vec)\nVec = vec\ndef mk(*a): return e\nadd = sortp = mk"
ONE_GENERATOR = "e = (x for x in ())\ndef mk(*a): return e\nadd = sortp = mk"


@pytest.mark.parametrize(
    ("program", "test"),
    [
        *((ONE_OBJECT, test) for test in ("assert Vec(5) - Vec(3) == Vec(2)", "assert vec(5) - vec(3) == vec(2)", "assert not vec(5) - vec(3) != vec(2)")),
        *(
            (program, test)
            for program in (ONE_OBJECT, ONE_GENERATOR)
            for test in (
                "assert add(mk(1), mk(2)) == mk(3)", "assert sortp([mk(2), mk(1)]) == mk(1)", "assert [add(1, 2)] == [mk(3)]", "assert (add(1), 4) == (mk(3), 4)", "assert add(1) in [mk(1)]",
                "assert add(1) is mk(1)", "assert {1: add(1)} == {1: mk(1)}", "import unittest\nunittest.TestCase().assertEqual(add(1), mk(1))", "import unittest\nunittest.TestCase().assertIs(add(1), mk(1))",
                "import operator\nassert operator.is_(add(1), mk(1))", "assert id(add(1)) == id(mk(1))", "assert {add(1): 4}[mk(1)] == 4", "assert len({add(1), mk(1)}) == 1",
            )
        ),
    ],
)  # fmt: skip
def test_a_pass_that_rests_on_the_identity_of_the_programs_objects_earns_no_reward(strict, program, test):
    grade = strict.grade(mbpp(program, test))
    assert grade.verdict in (Verdict.WRONG, Verdict.ERROR), grade


def test_an_object_may_not_take_the_place_of_a_repeated_answer(grader):
    check = "def check(candidate):\n    assert candidate(candidate(1)) == candidate(1)\n"
    grade = grader.grade(CodeRequest("humaneval", check, ONE_OBJECT + "\nf = mk", "code", "", "f"))
    assert grade.forgeable, grade


CHANGING = """
import gc
class F(BASE):
    __lt__ = __add__ = __iadd__ = lambda s, o: True
values = iter([HIGH, LOW] * 50)
operations = next(o for o in gc.get_objects() if type(o) is dict and 'plain' in o and 'anext' in o)
operations['plain'] = lambda _, v: next(values)
def f(x): return F()
"""


@pytest.mark.parametrize(
    ("base", "high", "low", "test"),
    [
        ("float", "1e9", "-1e9", "assert 40 < f(2) < 42"),
        ("float", "1e9", "-1e9", "x = f(2)\nassert x >= 41 and x <= 41"),
        ("float", "1e9", "-1e9", "x = f(2)\nf(3)\nassert x >= 41\nf(3)\nassert x <= 41"),
        ("list", "[50]", "[]", "x = f(2)\nassert x >= [41] and x <= [41]"),
        ("list", "[50]", "[]", "x, y = f(2), f(3)\nassert x >= [41] and y >= [4] and x <= [41]"),
        ("float", "'b'", "1.0", "assert f(2) > 'a'"),
    ],
)
def test_a_plain_value_does_not_change_between_comparisons(grader, base, high, low, test):
    program = CHANGING.replace("BASE", base).replace("HIGH", high).replace("LOW", low)
    assert grader.grade(mbpp(program, test)).verdict is Verdict.WRONG


ECHO = """
class S(BASE):
    def zero(s, *a, **k): return 0
    def last(s, *a, **k): return [*a, *k.values()][-1]
    def empty(s, *a, **k): return ''
    rfind = rindex = find = zero
    union = get = setdefault = pop = replace = last
    strip = lstrip = rstrip = removeprefix = empty
    def partition(s, x): return '', x, ''
def f(x): return S(VALUE)
"""


@pytest.mark.parametrize("base", ["object", "str", "dict"])
@pytest.mark.parametrize(
    ("test", "verdicts"),
    [
        *((t, {Verdict.WRONG}) for t in ("assert f(2).rfind('needle') == 0", "assert f(2).strip('ab') == ''", "assert f(2).lstrip(chars := 'ab') == ''", "assert f(2).rindex(41) == 0", "assert f(2).removeprefix('41') == ''", "m = f(2).rfind\nassert m('a') == 0")),
        # Classes of programs have these as methods of their own, so the pass is the program's word.
        *((t, {Verdict.WRONG, Verdict.ERROR}) for t in ("assert f(2).find('needle') == 0", "assert f(2).union({1, 2}) == {1, 2}", "assert f(2).get('missing', 'zz') == 'zz'", "assert f(2).get('missing', default='zz') == 'zz'", "assert f(2).pop('missing', 41) == 41", "assert f(2).replace('a', 'b') == 'b'", "assert f(2).partition(',')[1] == ','")),
    ],
)  # fmt: skip
def test_a_method_of_plain_data_does_not_judge_data_of_the_tests(strict, base, test, verdicts):
    grade = strict.grade(mbpp(ECHO.replace("BASE", base).replace("VALUE", "'x'" if base == "str" else ""), test))
    assert grade.verdict in verdicts, grade


@pytest.mark.parametrize("test", ["assert f(2) == 41", "assert f(2) != 40", "assert not f(2) == 40", "assert f(2) in [41]", "assert abs(f(2)) == 41", "assert f(2) > 40", "assert f(2).x == 41", "assert 40 not in [f(2)]"])  # fmt: skip
@pytest.mark.parametrize("body", ["pass", "x = 0", "__eq__ = lambda s, o: True", "__ne__ = lambda s, o: True", "def __init__(s, *a): raise ValueError"])  # fmt: skip
def test_an_exception_class_in_the_place_of_a_function_is_wrong(grader, test, body):
    grade = grader.grade(mbpp(f"class f(Exception):\n    {body}", test))
    assert grade.verdict is Verdict.WRONG, grade


def test_the_sandbox_holds_for_what_objects_do_later(grader):
    program = textwrap.dedent("""
        import os
        class E:
            def __getattr__(self, name):
                try:
                    return getattr(self, 'do_' + name[3:])() if name.startswith('go_') else object.__getattribute__(self, name)
                except OSError as e:
                    return 'refused ' + type(e).__name__
            def do_fork(self): os.fork(); return 'done'
            def do_read(self): open('/etc/passwd').read(); return 'done'
            def do_kill(self): os.kill(-1, 9); return 'done'
        def f(x): return E()
        async def g(x):
            try: os.fork()
            except OSError: return 'refused'
    """)
    test = "import asyncio\ne = f(2)\nassert all(r.startswith('refused') for r in (e.go_fork, e.go_read, e.go_kill)) and asyncio.run(g(1)) == 'refused'"
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict is Verdict.CORRECT, grade

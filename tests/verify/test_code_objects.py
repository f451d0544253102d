"""Objects and functions that cross between the tests and the program: judged right, and never forged.

Rows c025 to c092 of public reports, with siblings. Each program is right, so each verdict is ``correct``.
"""

import pytest
from code_tools import mbpp, needs_sandbox

from selfcorrect.types import Verdict
from selfcorrect.verify.code import CodeGrader, CodeRequest, ProgramLimits


@pytest.fixture(scope="module")
def grader():
    needs_sandbox()
    with CodeGrader(limits=ProgramLimits(cpu_s=5, idle_s=5), workers=2, trust_forgeable=True) as made:
        yield made


POINT = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int = 0\n    def shifted(self, n): return P(self.x + n, self.y)\ndef make(x=1): return P(x)\n"
COLOUR = "import enum\nclass C(enum.Enum):\n    RED = 1\n    BLUE = 2\ndef pick(): return C.RED\ndef both(): return list(C)\n"
NODE = """class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next
def build(xs):
    head = None
    for x in reversed(xs):
        head = ListNode(x, head)
    return head
def total(node):
    s = 0
    while node:
        s += node.val; node = node.next
    return s
def reverse(node):
    last = None
    while node: node.next, last, node = last, node, node.next
    return last
"""
STACK = """class stack:
    kind = 'lifo'
    def __init__(self, items=()): self.items = list(items)
    def push(self, x): self.items.append(x); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __add__(self, other): return stack(self.items + list(other))
    def __repr__(self): return f'stack({self.items})'
    @property
    def top(self): return self.items[-1]
    @staticmethod
    def of(*xs): return stack(xs)
    @classmethod
    def named(cls): return cls.__name__
"""

OBJECTS = {
    "dataclass, attribute": (POINT, "assert make().x == 1"),
    "dataclass, method": (POINT, "assert make().shifted(4).x == 5 and make().y == 0"),
    "dataclass, repr": (POINT, "assert repr(make()) == 'P(x=1, y=0)' and str(make(2)) == 'P(x=2, y=0)'\nassert f'{make()}' == 'P(x=1, y=0)'"),
    "dataclass, name of its class": (POINT, "assert type(make()).__name__ == 'P' and make().__class__.__name__ == 'P'"),
    "dataclass, equal": (POINT, "assert make() == make() and make(1) != make(2)"),
    "dataclass, built by the tests": (POINT, "assert make(3) == P(3)"),
    "dataclass, in a list": (POINT.replace("return P(x)", "return [P(i) for i in range(3)]"), "assert [p.x for p in make()] == [0, 1, 2]"),
    "dataclass, in a dict": (POINT.replace("return P(x)", "return {'a': P(x)}"), "assert make()['a'].x == 1"),
    "dataclass, asdict": (POINT, "assert vars(make()) == {'x': 1, 'y': 0}\nassert make().__dict__['x'] == 1"),
    "dataclass, changed": (POINT, "p = make()\np.x = 9\nassert p.x == 9 and p.shifted(1).x == 10"),
    "dataclass, key": (POINT.replace("@dataclass", "@dataclass(frozen=True)") + "def count(): return {P(1): 5}", "assert count()[P(1)] == 5"),
    "dataclass, ordered": (POINT.replace("@dataclass", "@dataclass(order=True)"), "assert make(1) < make(2)\nassert max([make(1), make(3)]).x == 3"),
    "dataclass, slots": (POINT.replace("@dataclass", "@dataclass(slots=True)"), "assert make().x == 1"),
    "dataclass, attribute that is missing": (POINT, "assert not hasattr(make(), 'z') and getattr(make(), 'z', 7) == 7 and hasattr(make(), 'x')"),
    "dataclass, not None": (POINT, "assert make() is not None and make() != None and make()"),
    "named tuple": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef make(): return P(1, 2)", "assert make().x == 1 and make() == (1, 2) and make()[1] == 2\nx, y = make()\nassert y == 2 and make()._asdict() == {'x': 1, 'y': 2}"),
    "named tuple, replaced": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef make(): return P(1, 2)", "assert make()._replace(x=5) == (5, 2) and repr(make()) == 'P(x=1, y=2)' and make()._fields == ('x', 'y')"),
    "typing.NamedTuple": ("from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    def twice(self): return 2 * self.x\ndef make(): return P(4)", "assert make().twice() == 8 and make() == (4,) and isinstance(make(), tuple)"),
    "named tuple with an operator": ("from typing import NamedTuple\nclass V(NamedTuple):\n    x: int\n    y: int\n    def __add__(self, o): return V(self.x + o.x, self.y + o.y)\ndef v(x, y): return V(x, y)", "assert v(1, 2) + v(3, 4) == (4, 6)\nassert (v(1, 2) + v(3, 4)).x == 4"),
    "enum, name": (COLOUR, "assert pick().name == 'RED' and pick().value == 1"),
    "enum, member": (COLOUR, "assert pick() == C.RED and pick() is C.RED and not pick() is C.BLUE"),
    "enum, another member": (COLOUR, "assert pick() != C.BLUE and not pick() == C.BLUE"),
    "enum, listed": (COLOUR, "assert [c.name for c in both()] == ['RED', 'BLUE']\nassert [c.value for c in C] == [1, 2] and len(C) == 2"),
    "enum, looked up": (COLOUR, "assert C['RED'].value == 1 and C(2).name == 'BLUE'"),
    "enum, str": (COLOUR, "assert str(pick()) == 'C.RED'"),
    "enum, key": (COLOUR + "def count(): return {C.RED: 3}", "assert count()[C.RED] == 3"),
    "int enum": (COLOUR.replace("enum.Enum", "enum.IntEnum"), "assert pick() == 1 and pick().name == 'RED' and pick() + 1 == 2 and pick() < C.BLUE"),
    "str enum": (COLOUR.replace("enum.Enum", "str, enum.Enum").replace("1", "'r'").replace("2", "'b'"), "assert pick() == 'r' and pick().name == 'RED' and pick().upper() == 'R'"),
    "flag": (COLOUR.replace("enum.Enum", "enum.Flag"), "assert (C.RED | C.BLUE).value == 3 and pick() in both()"),
    "int flag": (COLOUR.replace("enum.Enum", "enum.IntFlag"), "assert (C.RED | C.BLUE).value == 3 and pick() == 1 and pick().name == 'RED'"),
    "linked list": (NODE, "h = build([1, 2])\nassert h.val == 1 and h.next.val == 2 and h.next.next is None"),
    "linked list, walked": (NODE, "h = build([1, 2, 3])\nout = []\nwhile h:\n    out.append(h.val)\n    h = h.next\nassert out == [1, 2, 3]"),
    "linked list, long": (NODE, "h = build(list(range(1500)))\nn = 0\nwhile h is not None:\n    n += 1\n    h = h.next\nassert n == 1500"),
    "linked list, passed back": (NODE, "assert total(build([1, 2, 3])) == 6\nassert reverse(build([1, 2])).val == 2"),
    "linked list, built by the tests": (NODE, "a = ListNode(1)\na.next = ListNode(2)\nassert total(a) == 3"),
    "linked list, cycle": (NODE + "def ring():\n    a = ListNode(1)\n    a.next = a\n    return a", "r = ring()\nassert r.next is r and r.next.next == r"),
    "tree": ("class T:\n    def __init__(self, v, kids=()): self.v = v; self.kids = list(kids)\ndef grow(): return T(1, [T(2), T(3, [T(4)])])", "def flat(t): return [t.v] + [x for k in t.kids for x in flat(k)]\nassert flat(grow()) == [1, 2, 3, 4]"),
    "lower-case class": (STACK, "s = stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2 and len(s) == 1 and s.top == 1"),
    "lower-case class, chained": (STACK, "assert stack().push(1).push(5).pop() == 5"),
    "lower-case class, iterated": (STACK, "assert list(stack([1, 2])) == [1, 2] and 2 in stack([1, 2]) and 3 not in stack([1]) and sum(stack([4, 5])) == 9"),
    "lower-case class, items": (STACK, "s = stack([5, 6])\nassert s[0] == 5 and s[-1] == 6 and (s + [7])[2] == 7"),
    "lower-case class, truth": (STACK, "s = stack()\nassert not s\ns.push(1)\nassert s\ns.pop()\nassert not s and bool(s) is False"),
    "lower-case class, names of the class": (STACK, "assert stack.kind == 'lifo' and stack.of(1, 2).top == 2 and stack.named() == 'stack' and stack.__name__ == 'stack'"),
    "lower-case class, repr": (STACK, "assert repr(stack([1])) == 'stack([1])'"),
    "lower-case class, isinstance": (STACK, "assert isinstance(stack(), stack) and not isinstance(5, stack)"),
    "lower-case class, error": (STACK, "try:\n    stack().pop()\n    assert False\nexcept IndexError as e:\n    assert 'empty' in str(e)"),
    "class in capitals, method": ("class Stack:\n    def __init__(self): self.x = []\n    def push(self, v): self.x.append(v)\n    def __contains__(self, v): return v in self.x", "s = Stack()\ns.push(1)\nassert 1 in s and 2 not in s"),
    "class in capitals, operator on data": ("class Money:\n    def __init__(self, v): self.v = v\n    def __add__(self, o): return self.v + o\n    def __eq__(self, o): return self.v == o\n    def __contains__(self, o): return o < self.v", "assert Money(5) + 3 == 8 and Money(5) == 5 and 2 in Money(5) and Money(5) == Money(5)"),
    "class in capitals, operator": ("class Vec:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return Vec(self.x + o.x)\n    def __eq__(self, o): return self.x == o.x\n", "assert Vec(1) + Vec(2) == Vec(3)"),
    "closure": ("def adder(n):\n    def add(x): return x + n\n    return add", "assert adder(3)(4) == 7 and adder(1)(1) == 2"),
    "counter in a closure": ("def counter():\n    n = 0\n    def step():\n        nonlocal n\n        n += 1\n        return n\n    return step", "c = counter()\nassert [c(), c(), c()] == [1, 2, 3]\nassert counter()() == 1"),
    "closures in a tuple": ("def account():\n    b = 0\n    def put(x):\n        nonlocal b; b += x\n    return put, lambda: b", "put, get = account()\nput(5)\nput(6)\nassert get() == 11"),
    "closures in a dict": ("def ops(): return {'+': lambda a, b: a + b, 'neg': lambda a: -a}", "assert ops()['+'](1, 2) == 3 and ops()['neg'](4) == -4"),
    "lambda": ("def twice(f): return lambda x: f(f(x))\ndef inc(x): return x + 1", "assert twice(inc)(1) == 3"),
    "name of a function": ("def adder(n):\n    def add(x):\n        'Adds.'\n        return x + n\n    return add", "f = adder(1)\nassert callable(f) and f.__name__ == 'add' and f.__doc__ == 'Adds.'"),
    "partial": ("from functools import partial\ndef adder(n): return partial(int.__add__, n)", "assert adder(3)(4) == 7 and adder(3).args == (3,)"),
    "partial with names": ("from functools import partial\ndef power(n): return partial(pow, exp=n)", "assert power(2)(3) == 9"),
    "bound method": ("def adder(xs): return xs.append\ndef upper(s): return s.upper", "assert upper('a')() == 'A'"),
    "builtin function": ("def pick(): return len", "assert pick()('abc') == 3"),
    "composed": ("def compose(*fs):\n    def run(x):\n        for f in fs: x = f(x)\n        return x\n    return run", "assert compose(abs, str, len)(-12) == 2"),
    "memo": ("import functools\n@functools.lru_cache(None)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)", "assert fib(50) == 12586269025 and fib.cache_info().hits > 0"),
    "coroutine": ("async def f(n): return n + 1", "import asyncio\nassert asyncio.run(f(1)) == 2"),
    "coroutines together": ("import asyncio\nasync def f(n):\n    await asyncio.sleep(0.01)\n    return n + 1", "import asyncio\nasync def main():\n    return await asyncio.gather(f(1), f(2)), await f(3)\nassert asyncio.run(main()) == ([2, 3], 4)"),
    "coroutine, error": ("async def f(n): raise ValueError('low')", "import asyncio\ntry:\n    asyncio.run(f(1))\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'low'"),
    "coroutine by a loop": ("async def f(n): return n", "import asyncio\nassert asyncio.new_event_loop().run_until_complete(f(4)) == 4"),
    "coroutine of a method": ("class bot:\n    async def ask(self, n): return 2 * n", "import asyncio\nassert asyncio.run(bot().ask(4)) == 8"),
    "asynchronous generator": ("async def f(n):\n    for i in range(n): yield i", "import asyncio\nasync def main(): return [x async for x in f(3)]\nassert asyncio.run(main()) == [0, 1, 2]"),
    "generator": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0 and sum(f(4)) == 6"),
    "endless generator": ("def f():\n    n = 0\n    while True:\n        yield n\n        n += 1", "import itertools\ng = f()\nassert [next(g), next(g)] == [0, 1]\nassert list(itertools.islice(f(), 5)) == [0, 1, 2, 3, 4]"),
    "generator, send": ("def f():\n    total = 0\n    while True:\n        total += yield total", "g = f()\nnext(g)\nassert g.send(3) == 3 and g.send(4) == 7\ng.close()"),
    "generator, throw": ("def f():\n    while True:\n        try:\n            yield 1\n        except ValueError:\n            yield 2", "g = f()\nnext(g)\nassert g.throw(ValueError) == 2"),
    "generator, type": ("def f(): yield 1", "import types\nassert isinstance(f(), types.GeneratorType)"),
    "generator of objects": (POINT + "def many():\n    for i in range(3): yield P(i)", "assert [p.x for p in many()] == [0, 1, 2]"),
    "generator, exhausted": ("def f(): yield 1", "g = f()\nassert list(g) == [1] and list(g) == [] and next(g, 'end') == 'end'"),
    "iterator of a class": ("class down:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n    def __next__(self):\n        if self.n == 0: raise StopIteration\n        self.n -= 1\n        return self.n", "d = down(3)\nassert next(d) == 2 and d.n == 2 and list(d) == [1, 0]"),
    "endless iterator": ("import itertools\ndef f(): return itertools.count(5)", "it = f()\nassert next(it) == 5 and next(it) == 6"),
    "iterators": ("def f(xs): return map(str, xs), zip(xs, xs), reversed(xs), filter(None, xs)", "a, b, c, d = f([0, 1])\nassert list(a) == ['0', '1'] and list(b) == [(0, 0), (1, 1)] and list(c) == [1, 0] and list(d) == [1]"),
    "match": ("import re\ndef f(s): return re.match(r'(\\w)(\\d)', s)", "assert f('a1') and f('a1').group(1) == 'a' and f('a1').groups() == ('a', '1') and f('') is None and f('a1')[2] == '1'"),
    "path": ("import pathlib\ndef f(): return pathlib.PurePosixPath('a/b.txt')", "assert f().name == 'b.txt' and str(f()) == 'a/b.txt' and f().suffix == '.txt'"),
    "uuid": ("import uuid\ndef f(): return uuid.UUID(int=5)", "assert str(f()).endswith('5') and f().int == 5"),
    "SimpleNamespace": ("from types import SimpleNamespace as S\ndef f(): return S(a=1, b=S(c=2))", "assert f().a == 1 and f().b.c == 2"),
    "deque": ("from collections import deque\ndef f(): return deque([1, 2], maxlen=2)", "from collections import deque\nd = f()\nd.append(3)\nassert d == deque([2, 3]) and d.maxlen == 2"),
    "Counter": ("from collections import Counter\ndef f(): return Counter('aab')", "assert f()['a'] == 2 and f() == {'a': 2, 'b': 1} and f().most_common(1) == [('a', 2)] and f()['z'] == 0"),
    "defaultdict": ("from collections import defaultdict\ndef f():\n    d = defaultdict(list)\n    d['a'].append(1)\n    return d", "assert f() == {'a': [1]} and f()['a'] == [1]"),
    "Decimal and Fraction": ("from decimal import Decimal\nfrom fractions import Fraction\ndef f(): return Decimal('0.10'), Fraction(1, 3)", "from decimal import Decimal\nfrom fractions import Fraction\nassert f() == (Decimal('0.1'), Fraction(1, 3)) and f()[1].denominator == 3"),
    "list with methods": ("class L(list):\n    def total(self): return sum(self)\ndef f(): return L([1, 2])", "x = f()\nassert x == [1, 2] and x.total() == 3 and len(x) == 2 and x[0] == 1\nx.append(4)\nassert x.total() == 7 and x == [1, 2, 4] and isinstance(x, list)"),
    "dict with a rule": ("class D(dict):\n    def __missing__(self, k): return k * 2\ndef f(): return D(a=1)", "assert f() == {'a': 1} and f()['a'] == 1 and f()['x'] == 'xx'"),
    "str with methods": ("class S(str):\n    def loud(self): return self.upper() + '!'\ndef f(): return S('hi')", "assert f() == 'hi' and f().loud() == 'HI!' and f() + '!' == 'hi!' and isinstance(f(), str)"),
    "int with methods": ("class N(int):\n    def even(self): return self % 2 == 0\ndef f(): return N(4)", "assert f() == 4 and f().even() and f() + 1 == 5 and isinstance(f(), int)"),
    "module": ("import math\ndef f(): return math", "assert f().sqrt(9) == 3"),
    "class": ("class P:\n    n = 3\ndef f(): return P", "assert f().n == 3 and f().__name__ == 'P' and f()().n == 3"),
    "made class": ("def f(name): return type(name, (), {'x': 1})", "assert f('A').__name__ == 'A' and f('A')().x == 1"),
    "object as data": (STACK + "s = stack([1])", "s.push(2)\nassert s.pop() == 2"),
    "callable object": ("class f_:\n    def __call__(self, x): return x + 1\nf = f_()", "assert f(1) == 2"),
    "operators, then items": ("class v:\n    def __init__(s, *x): s.x = x\n    def __mul__(s, k): return v(*[a * k for a in s.x])\n    __rmul__ = __mul__\n    def __sub__(s, k): return v(*[a - k for a in s.x])\n    def __neg__(s): return v(*[-a for a in s.x])\n    def __len__(s): return len(s.x)\n    def __getitem__(s, i): return s.x[i]\n    def __iter__(s): return iter(s.x)\n    def __repr__(s): return f'v{s.x}'\n    def count(s): return 7",
        "a = v(1, 2)\nassert list(a * 3) == [3, 6] and (2 * a)[1] == 4 and (a - 1)[0] == 0 and list(-(a * 3)) == [-3, -6] and len(a * 2) == 2 and repr(a * 2) == 'v(2, 4)' and a.count() == 7"),
    "methods named like those of plain data": ("class cache:\n    def __init__(s): s.d = {}\n    def get(s, k): return s.d.get(k, -1)\n    def insert(s, k, v): s.d[k] = v\n    def encode(s, t): return t[::-1]\n    def join(s, *x): return len(x)\n    def title(s): return 't'\n    def split(s, n): return n / 2",
        "c = cache()\nc.insert(1, 5)\nassert c.get(1) == 5 and c.get(2) == -1 and c.encode('ab') == 'ba' and c.join(1, 2) == 2 and c.title() == 't' and c.split(4) == 2"),
    "union and find": ("class sets:\n    def __init__(s, n): s.p = list(range(n))\n    def find(s, x): return x if s.p[x] == x else s.find(s.p[x])\n    def union(s, a, b): s.p[s.find(a)] = s.find(b)", "s = sets(4)\ns.union(0, 1)\nassert s.find(0) == s.find(1) != s.find(2)"),
    "data of the program that changes": ("state = []\ncount = 0\nitems = iter([1, 2])\ntotals = {'n': 1}\ndef add(x):\n    global count\n    count += 1\n    state.append(x)", "assert state == [] and count == 0\nseen = totals\nadd(1)\nadd(2)\nassert state == [1, 2] and count == 2 and totals is seen\ndef now(): return count\nadd(3)\nassert now() == 3 and next(items) == 1\nadd(4)\nassert next(items) == 2"),
    "object in a class of the library": ("class A:\n    v = 41\ndef f(x): return A() if x == 2 else x[0].v", "import collections\nassert f(collections.UserList([f(2)])) == 41"),
    "coroutine, sent back": ("import asyncio\nasync def g(): return 41\ndef f(x): return g() if x == 2 else asyncio.run(x)", "assert f(f(2)) == 41"),
    "coroutine, in a list": ("async def g(): return 41\ndef f(h): return h([g()])", "import asyncio\ndef h(x): return x\nassert asyncio.run(f(h)[0]) == 41"),
    "operators": ("class m:\n    def __init__(self, v): self.v = v\n    def __sub__(self, o): return m(self.v - o)\n    def __rsub__(self, o): return m(o - self.v)\n    def __mul__(self, o): return self.v * o.v\n    def __neg__(self): return -self.v\n    def __abs__(self): return abs(self.v)\n    def __float__(self): return 1.5\n    def __int__(self): return 4\n    def __round__(self, n=0): return 9\n    def __iadd__(self, o): self.v += o; return self", "a = m(5)\nassert (a - 1).v == 4 and (9 - a).v == 4 and a * m(2) == 10 and -a == -5 and abs(m(-2)) == 2 and float(a) == 1.5 and int(a) == 4 and round(a) == 9\na += 10\nassert a.v == 15"),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_judged_right(grader, name):
    program, test = OBJECTS[name]
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict is Verdict.CORRECT, grade
    if name not in FORGEABLE:
        assert not grade.forgeable, grade


FORGEABLE = {
    "dataclass, equal", "dataclass, built by the tests", "dataclass, key", "dataclass, ordered", "enum, looked up", "enum, key", "flag",
    "linked list, passed back", "linked list, built by the tests", "lower-case class, isinstance", "class in capitals, method",
    "class in capitals, operator", "class in capitals, operator on data", "enum, another member", "enum, member", "linked list, cycle", "union and find",
}  # fmt: skip
"""Only the program can compare its own objects, and some tests run in its process: such a pass earns no reward."""


ARGUMENTS = {
    "builtin": ("def apply(f, x): return f(x)", "assert apply(abs, -3) == 3", "import math\nassert apply(math.sqrt, 9) == 3", "assert apply(len, 'ab') == 2 and apply(str, 5) == '5' and apply(sum, [1, 2]) == 3"),
    "methods of builtins": ("def ap(f, xs): return [f(x) for x in xs]", "assert ap(str.upper, ['a']) == ['A'] and ap(int, ['4']) == [4] and ap(list, ['ab']) == [['a', 'b']]"),
    "operator": ("def red(f, xs):\n    r = xs[0]\n    for x in xs[1:]: r = f(r, x)\n    return r", "import operator\nassert red(operator.add, [1, 2, 3]) == 6 and red(operator.mul, [2, 3]) == 6", "assert red(max, [1, 5, 2]) == 5"),
    "named function": ("def ap(f, xs): return [f(x) for x in xs]", "def inc(x):\n    return x + 1\nassert ap(inc, [4]) == [5]"),
    "named lambda": ("def ap(f, xs): return [f(x) for x in xs]", "inc = lambda x: x + 1\nassert ap(inc, [4]) == [5]"),
    "lambda": ("def ap(f, xs): return [f(x) for x in xs]", "assert ap(lambda x: x + 1, [4]) == [5]"),
    "function with default": ("def ap(f): return f(1), f(1, 5), f(x=2), f(1, y=3)", "def add(x, y=10): return x + y\nassert ap(add) == (11, 6, 12, 4)"),
    "function of any arguments": ("def ap(f): return f(1, 2, a=3)", "def g(*args, **kwargs): return args, kwargs\nassert ap(g) == ((1, 2), {'a': 3})"),
    "function with odd parameters": ("def ap(f): return f(1, 2, c=3)", "def g(a, /, b, *, c, d=4): return [a, b, c, d]\nassert ap(g) == [1, 2, 3, 4]"),
    "looks at the parameters": ("import inspect\ndef curry(f):\n    n = len(inspect.signature(f).parameters)\n    def take(*a): return f(*a) if len(a) >= n else lambda *b: take(*a, *b)\n    return take", "def add(a, b, c): return a + b + c\nassert curry(add)(1)(2)(3) == 6 and curry(add)(1, 2)(3) == 6"),
    "looks at the code": ("def arity(f): return f.__code__.co_argcount, f.__name__", "def add(a, b): return a + b\nassert arity(add) == (2, 'add')"),
    "decorator": ("def twice_call(f):\n    def g(*a):\n        f(*a)\n        return f(*a)\n    return g", "n = []\n@twice_call\ndef h(x):\n    n.append(x)\n    return x\nassert h(3) == 3 and n == [3, 3]"),
    "decorator with wraps": ("import functools\ndef logged(f):\n    @functools.wraps(f)\n    def g(*a, **k): return ['called', f(*a, **k)]\n    return g", "@logged\ndef h(x, y=1):\n    'Doc.'\n    return x + y\nassert h(3) == ['called', 4] and h.__name__ == 'h'"),
    "decorator with arguments": ("def times(n):\n    def deco(f): return lambda *a: [f(*a) for _ in range(n)]\n    return deco", "@times(3)\ndef h(x): return x\nassert h(7) == [7, 7, 7]"),
    "decorator that keeps the function": ("registry = []\ndef register(f):\n    registry.append(f)\n    return f\ndef run(): return [f(2) for f in registry]", "@register\ndef h(x): return x * 5\nassert h(1) == 5 and run() == [10]"),
    "decorator, recursive": ("def memo(f):\n    seen = {}\n    def g(n):\n        if n not in seen: seen[n] = f(n)\n        return seen[n]\n    return g", "@memo\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\nassert fib(60) == 1548008755920"),
    "class as a decorator": ("class counted:\n    def __init__(self, f): self.f = f; self.n = 0\n    def __call__(self, *a):\n        self.n += 1\n        return self.f(*a)", "@counted\ndef h(x): return x + 1\nassert h(1) == 2 and h(2) == 3 and h.n == 2"),
    "retry": ("def retry(n):\n    def deco(f):\n        def g(*a):\n            for i in range(n):\n                try: return f(*a)\n                except ValueError:\n                    if i == n - 1: raise\n        return g\n    return deco", "calls = []\n@retry(3)\ndef flaky():\n    calls.append(1)\n    if len(calls) < 3: raise ValueError('no')\n    return 'ok'\nassert flaky() == 'ok' and len(calls) == 3"),
    "error that passes through": ("def run(f): return f()", "class Mine(Exception): pass\ndef bad(): raise Mine('x')\ntry:\n    run(bad)\n    assert False\nexcept Mine as e:\n    assert e.args == ('x',)"),
    "callback for events": ("class bus:\n    def __init__(self): self.fs = []\n    def on(self, f): self.fs.append(f)\n    def emit(self, *a):\n        for f in self.fs: f(*a)", "got = []\nb = bus()\nb.on(got.append)\nb.on(lambda x: got.append(x * 2))\nb.emit(4)\nassert got == [4, 8]"),
    "key function": ("def by(xs, key): return sorted(xs, key=key)", "def last(s): return s[-1]\nassert by(['ab', 'ba'], last) == ['ba', 'ab'] and by(['bb', 'a'], key=len) == ['a', 'bb']\nimport operator\nassert by([(1, 2), (2, 1)], operator.itemgetter(1)) == [(2, 1), (1, 2)]"),
    "predicate that sees objects": (POINT + "def some(f): return [p.x for p in (P(1), P(2)) if f(p)]", "def big(p): return p.x > 1\nassert some(big) == [2]"),
    "partial as an argument": ("def ap(f, x): return f(x)", "from functools import partial\nassert ap(partial(pow, 2), 3) == 8"),
    "bound method as an argument": ("def ap(f, xs):\n    for x in xs: f(x)", "s = set()\nap(s.add, [1, 2, 2])\nassert s == {1, 2}"),
    "class as an argument": ("def make(kind, xs): return kind(xs)", "from collections import Counter, deque\nassert make(Counter, 'aa')['a'] == 2 and make(deque, [1])[0] == 1 and make(set, [1, 1]) == {1}"),
    "exception as an argument": ("def safe(f, errors):\n    try: return f()\n    except errors: return 'caught'", "def bad(): raise KeyError('k')\nassert safe(bad, KeyError) == 'caught' and safe(bad, (ValueError, LookupError)) == 'caught'"),
    "generator as an argument": ("def take(n, it):\n    return [x for _, x in zip(range(n), it)]", "import itertools\ndef gen():\n    n = 0\n    while True:\n        yield n\n        n += 1\nassert take(3, gen()) == [0, 1, 2] and take(2, itertools.count(5)) == [5, 6] and take(2, iter([7, 8, 9])) == [7, 8] and take(1, map(str, [4])) == ['4']"),
    "compiled pattern as an argument": ("def find(p, s): return p.findall(s)", "import re\nassert find(re.compile(r'\\d'), 'a1b2') == ['1', '2']"),
    "file as an argument": ("def lines(f): return [l.strip() for l in f]", "import io\nassert lines(io.StringIO('a\\nb\\n')) == ['a', 'b']"),
    "module as an argument": ("def root(m, x): return m.sqrt(x)", "import math\nassert root(math, 16) == 4"),
    "asynchronous function as an argument": ("import asyncio\nasync def run_all(f, xs): return [await f(x) for x in xs]", "import asyncio\nasync def inc(x): return x + 1\nassert asyncio.run(run_all(inc, [1, 2])) == [2, 3]"),
    "functions in a list": ("def chain(fs, x):\n    for f in fs: x = f(x)\n    return x", "def inc(x): return x + 1\nassert chain([inc, abs, str], -5) == '4'"),
    "functions in a dict": ("def run(table, op, *a): return table[op](*a)", "import operator\nassert run({'+': operator.add, '-': operator.sub}, '-', 5, 3) == 2"),
    "the program's function back": ("def inc(x): return x + 1\ndef twice(f, x): return f(f(x))", "assert twice(inc, 1) == 3 and twice(twice.__class__ and inc, 1) == 3"),
    "mutual recursion": ("def even(n, odd): return True if n == 0 else odd(n - 1)", "def odd(n): return False if n == 0 else even(n - 1, odd)\nassert even(40, odd) is True and even(41, odd) is False"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_functions_are_judged_right(grader, name):
    program, *tests = ARGUMENTS[name]
    grade = grader.grade(mbpp(program, *tests))
    assert grade.verdict is Verdict.CORRECT, grade


ERRORS = {
    "own class": ("class Bad(Exception): pass\ndef go(): raise Bad('x')", "try:\n    go()\n    assert False\nexcept Exception as e:\n    assert type(e).__name__ == 'Bad' and str(e) == 'x' and e.args == ('x',)"),
    "own class with a state": ("class Bad(Exception):\n    def __init__(self, code): super().__init__(f'code {code}'); self.code = code\ndef go(): raise Bad(7)", "try:\n    go()\n    assert False\nexcept Exception as e:\n    assert e.code == 7 and str(e) == 'code 7'"),
    "own class by name": ("class bad(ValueError): pass\ndef go(): raise bad('x')", "try:\n    go()\n    assert False\nexcept bad as e:\n    assert isinstance(e, ValueError)"),
    "own base class by name": ("class base(Exception): pass\nclass bad(base): pass\ndef go(): raise bad('x')", "try:\n    go()\n    assert False\nexcept base as e:\n    assert type(e).__name__ == 'bad'"),
    "own class in capitals": ("class Bad(Exception): pass\ndef go(): raise Bad('x')", "try:\n    go()\n    assert False\nexcept Bad:\n    pass"),
    "own text": ("class Bad(Exception):\n    def __str__(self): return 'own'\ndef go(): raise Bad()", "try:\n    go()\n    assert False\nexcept Exception as e:\n    assert str(e) == 'own'"),
    "key error": ("def go(): return {}['k']", "try:\n    go()\n    assert False\nexcept KeyError as e:\n    assert e.args == ('k',) and str(e) == \"'k'\""),
    "stop": ("def go(): return next(iter([]))", "try:\n    go()\n    assert False\nexcept Exception as e:\n    assert type(e).__name__ != 'AssertionError'"),
    "returned": ("def go(): return ValueError('x')", "assert go().args == ('x',) and str(go()) == 'x'"),
    "built by the tests": ("class bad(Exception):\n    def __init__(self, code, *, why=''): super().__init__(f'code {code}'); self.code = code; self.why = why", "e = bad(7, why='x')\nassert str(e) == 'code 7' and e.code == 7 and e.why == 'x' and isinstance(e, bad) and e == e and e != None\ntry:\n    raise bad(8)\nexcept bad as e:\n    assert e.code == 8"),
    "not built": ("class bad(Exception):\n    def __init__(self, code):\n        if code < 0: raise ValueError('low')", "try:\n    bad(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'low'"),
    "with unittest": ("class bad(ValueError): pass\ndef go(x): raise bad(x)", "import unittest\nwith unittest.TestCase().assertRaises(ValueError) as c:\n    go('z')\nassert str(c.exception) == 'z'"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_exceptions_are_judged_right(grader, name):
    program, test = ERRORS[name]
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict is Verdict.CORRECT, grade


LISTS = (
    "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val = val\n        self.next = next\n\n"
)
HUMANEVAL = {
    "entry point of a class": ("class Solution:\n    def twice(self, n: int) -> int:\n        ", "Solution().twice", "        return 2 * n", "assert candidate(n=4) == 8 and candidate(0) == 0"),
    "static method": ("class Solution:\n    @staticmethod\n    def twice(n):\n        ", "Solution.twice", "        return 2 * n", "assert candidate(4) == 8"),
    "class of the prompt, returned": (LISTS + "def build(xs):\n", "build", "    head = None\n    for x in reversed(xs): head = ListNode(x, head)\n    return head", "h = candidate([1, 2])\n    assert h.val == 1 and h.next.val == 2 and isinstance(h, ListNode)"),
    "class of the prompt, long": (LISTS + "def build(xs):\n", "build", "    head = None\n    for x in reversed(xs): head = ListNode(x, head)\n    return head", "h = candidate(list(range(900)))\n    n = 0\n    while h: n, h = n + 1, h.next\n    assert n == 900"),
    "class of the prompt, passed": (LISTS + "def total(head):\n", "total", "    s = 0\n    while head: s, head = s + head.val, head.next\n    return s", "assert candidate(ListNode(1, ListNode(2))) == 3 and candidate(None) == 0"),
    "class of the prompt, to and fro": (LISTS + "class Solution:\n    def rev(self, head):\n        ", "Solution().rev", "        last = None\n        while head: head.next, last, head = last, head, head.next\n        return last", "h = candidate(ListNode(1, ListNode(2)))\n    assert (h.val, h.next.val, h.next.next) == (2, 1, None)"),
    "class of the prompt, equal": ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n\ndef make(x):\n", "make", "    return P(x)", "assert candidate(3) == P(3) and candidate(3) != P(4)"),
    "flags of the prompt": ("import enum\nclass F(enum.IntFlag):\n    A = 1\n    B = 2\nclass G(enum.Flag):\n    A = 1\n    B = 2\n\ndef both(f):\n", "both", "    return f | type(f).B", "assert candidate(F.A) == F.A | F.B and candidate(F.B) == 2 and candidate(F.A | F.B) == 3\n    assert candidate(G.A) is G.A | G.B and candidate(G.A | G.B).value == 3 and candidate(G(0)) == G.B"),
    "enum of the prompt": ("import enum\nclass C(enum.Enum):\n    RED = 1\n    BLUE = 2\n\ndef flip(c):\n", "flip", "    return C.BLUE if c is C.RED else C.RED", "assert candidate(C.RED) is C.BLUE and candidate(C.BLUE) == C.RED"),
    "named tuple of the prompt": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\n\ndef flip(p):\n", "flip", "    return P(p.y, p.x)", "assert candidate(P(1, 2)) == P(2, 1) and candidate(P(1, 2)).x == 2"),
    "exception of the prompt": ("class Low(Exception):\n    pass\n\ndef check_it(n):\n", "check_it", "    if n < 0: raise Low('low')\n    return n", "assert candidate(1) == 1\n    try:\n        candidate(-1)\n        assert False\n    except Low as e:\n        assert str(e) == 'low'"),
    "function as an argument": ("def apply(f, x):\n", "apply", "    return f(x)", "assert candidate(lambda v: v + 1, 1) == 2 and candidate(abs, -1) == 1"),
    "closure": ("def adder(n):\n", "adder", "    return lambda x: x + n", "assert candidate(3)(4) == 7"),
    "coroutine": ("async def f(n):\n", "f", "    return n + 1", "import asyncio\n    assert asyncio.run(candidate(1)) == 2"),
    "generator": ("def f(n):\n", "f", "    yield from range(n)", "assert list(candidate(3)) == [0, 1, 2]"),
    "class as the candidate": ("class counter:\n    def __init__(self):\n", "counter", "        self.n = 0\n    def step(self):\n        self.n += 1\n        return self.n", "c = candidate()\n    assert c.step() == 1 and c.step() == 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", HUMANEVAL)
def test_humaneval_objects_are_judged_right(grader, name):
    prompt, entry, body, check = HUMANEVAL[name]
    tests = f"def check(candidate):\n    {check}\n"
    body = body.lstrip() if prompt.endswith(" ") else body
    for form, completion in (("body", body), ("text", f"```python\n{prompt}{body}\n```")):
        request = CodeRequest("humaneval", tests, completion, form, prompt, entry)
        grade = grader.grade(request)
        assert grade.verdict is Verdict.CORRECT, (form, grade)


@pytest.mark.parametrize("entry", ["1 + 1", "f(2)", "", "a b", "Solution().f(1)", "[f][0]"])
def test_an_entry_point_is_a_name_or_a_path(grader, entry):
    grade = grader.grade(CodeRequest("humaneval", "def check(c): pass", "def f(): pass", "code", "", entry))
    assert grade.verdict is Verdict.ERROR and "entry_point" in grade.detail


CHANGED = {
    "list": ("def f(a): a.sort()", "a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]"),
    "None is asserted": ("def f(a): a.reverse()", "a = [1, 2]\nassert f(a) is None\nassert a == [2, 1]"),
    "a result besides": ("def f(a): return a.pop(0)", "a = [1, 2]\nassert f(a) == 1\nassert a == [2] and len(a) == 1"),
    "as many as the result says": ("def f(a):\n    b = sorted(set(a))\n    a[:len(b)] = b\n    return len(b)", "a = [1, 1, 2]\nk = f(a)\nassert a[:k] == [1, 2]"),
    "rows": ("def f(m): m[:] = [list(r) for r in zip(*m[::-1])]", "m = [[1, 2], [3, 4]]\nf(m)\nassert m == [[3, 1], [4, 2]]"),
    "item of a row": ("def f(m): m[0][1] = 9", "m = [[1, 2]]\nf(m)\nassert m[0] == [1, 9]"),
    "memo": ("def f(n, m):\n    m[n] = 55\n    return 55", "m = {}\nf(10, m)\nassert m[10] == 55"),
    "by name, before an error": ("def f(*, a):\n    a.append(2)\n    raise ValueError", "a = [1]\ntry:\n    f(a=a)\nexcept ValueError:\n    pass\nassert a == [1, 2]"),
    "other kinds": ("def f(a, b, c, d, e):\n    a.add(1); b.append(2); c.append(3); d['x'] += 1; e['y'].append(1)", "from collections import Counter, defaultdict, deque\na, b, c, d, e = set(), bytearray(), deque(maxlen=1), Counter('x'), defaultdict(list, y=[])\nf(a, b, c, d, e)\nassert a == {1} and b == b'\\2' and c.maxlen == 1 and c[0] == 3 and d['x'] == 2 and e['z'] == [] and e['y'] == [1]"),
    "by a method": ("class bag:\n    def fill(s, d): d['a'] = 1", "d = {}\nb = bag()\nb.fill(d)\nassert d == {'a': 1}"),
    "objects of the program": ("class P:\n    def __init__(s, x): s.x = x\ndef f(a): a.sort(key=lambda p: p.x)\ndef mk(x): return P(x)", "a = [mk(2), mk(1)]\nf(a)\nassert [p.x for p in a] == [1, 2]"),
    "with unittest": ("def f(a): a.sort()", "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        a = [2, 1]\n        f(a)\n        self.assertEqual(a, [1, 2])\nr = unittest.TestResult()\nT('test').run(r)\nassert r.wasSuccessful()"),
    "unchanged": ("def f(a): return sorted(a)", "a = [2, 1]\nassert f(a) == [1, 2]\nassert a == [2, 1]"),
    "iterators in it": ("def f(a): return [list(x) for x in a]", "a = [iter([1])]\nassert f(a) == [[1]]\nb = [2]\nassert f([b]) == [[2]] and len(a) == 1\nassert b == [2]"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_changes_of_an_argument_are_seen(grader, name):
    grade = grader.grade(mbpp(*CHANGED[name]))
    assert grade.verdict is Verdict.CORRECT and not grade.forgeable, grade


def test_changes_of_an_argument_humaneval(grader):
    check = "def check(candidate):\n    a = [3, 1]\n    candidate(a)\n    assert a == [1, 3]\n"
    for body, verdict in (("a.sort()", Verdict.CORRECT), ("a.reverse(); a.pop()", Verdict.WRONG)):
        request = CodeRequest("humaneval", check, f"def f(a): {body}", "code", "", "f")
        assert grader.grade(request).verdict is verdict


@pytest.mark.parametrize("test", ["assert f(a) == sorted(a)", "r = f(a)\nassert r == sorted(a)", "assert sorted(a) == f(a)", "assert f(a) == [2, 1]\nassert a == [2, 1]"])  # fmt: skip
def test_a_changed_argument_does_not_choose_the_expected_value(grader, test):
    grade = grader.grade(mbpp("def f(a):\n    a.clear()\n    return a", f"a = [2, 1]\n{test}"))
    assert grade.verdict is Verdict.WRONG, grade


@pytest.mark.parametrize(
    ("program", "test", "reason"),
    [
        ("def f(x): return x.n", "class T:\n    n = 5\nassert f(T()) == 5", "class T"),
        ("def f(x): return x.n", "class T:\n    n = 5\nt = T()\nassert f(t) == 5", "class T"),
        (
            "class Base:\n    def go(self): return self.n()",
            "class T(Base):\n    def n(self): return 4\nassert T().go() == 4",
            "Base",
        ),
        (
            "import contextlib\n@contextlib.contextmanager\ndef opened():\n    yield 4",
            "with opened() as x:\n    assert x == 4",
            "context manager",
        ),
        (
            "class Opened:\n    def __enter__(self): return 4\n    def __exit__(self, *a): return False",
            "with Opened() as x:\n    assert x == 4",
            "context manager",
        ),
        (
            "def say(): print('hi')",
            "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    say()\nassert out.getvalue() == 'hi\\n'",
            "prints",
        ),
        (
            "def say(): print('hi')",
            "import io, sys\nold, sys.stdout = sys.stdout, io.StringIO()\nsay()\ntext = sys.stdout.getvalue()\nsys.stdout = old\nassert text == 'hi\\n'",
            "prints",
        ),
        (
            "def say(): print('hi')",
            "import io\nfrom contextlib import redirect_stdout as r\nout = io.StringIO()\nwith r(out):\n    say()\nassert out.getvalue() == 'hi\\n'",
            "prints",
        ),
        (
            "def say(): print('hi')",
            "import io, sys as s\nold, s.stdout = s.stdout, io.StringIO()\nsay()\ntext = s.stdout.getvalue()\ns.stdout = old\nassert text == 'hi\\n'",
            "prints",
        ),
        (
            "import logging\ndef say(): logging.getLogger().error('hi')",
            "import unittest\nwith unittest.TestCase().assertLogs() as c:\n    say()\nassert 'hi' in c.output[0]",
            "logs",
        ),
        (
            "import warnings\ndef say(): warnings.warn('hi')",
            "from warnings import catch_warnings as cw\nwith cw(record=True) as w:\n    say()\nassert len(w) == 1",
            "prints",
        ),
        (
            "import warnings\ndef say(): warnings.warn('hi')",
            "import unittest\nwith unittest.TestCase().assertWarns(UserWarning):\n    say()",
            "prints",
        ),
        ("def say(f): f.write('hi')", "import io\nf = io.StringIO()\nsay(f)\nassert f.getvalue() == 'hi'", "logs"),
        (
            "class A:\n    def __enter__(s): return 4\n    def __exit__(s, *a): return False\ndef mk(): return A()",
            "a = mk()\nwith a as x:\n    assert x == 4",
            "context manager",
        ),
        (
            "def ask(): return input()",
            "from unittest.mock import patch\nwith patch('builtins.input', return_value='a'):\n    assert ask() == 'a'",
            "prints",
        ),
    ],
)
def test_tests_that_need_one_process_run_in_the_programs_and_earn_no_reward(grader, program, test, reason):
    grade = grader.grade(mbpp(program, test))
    assert grade.verdict is Verdict.CORRECT and grade.forgeable and reason in grade.detail, grade
    with CodeGrader(workers=1) as strict:
        assert strict.grade(mbpp(program, test)).verdict is Verdict.ERROR


def test_tests_that_need_a_package_are_our_error_with_the_way_out(grader):
    for test in (
        "import numpy as np\nassert (f(2) == np.array([1])).all()",
        "from pandas import DataFrame\nassert f(2)",
    ):
        grade = grader.grade(mbpp("def f(x): return [1]", test))
        assert grade.verdict is Verdict.ERROR and "standard library" in grade.detail, grade
    grade = grader.grade(CodeRequest("humaneval", "import numpy\ndef check(c): pass", "def f(): pass", "code", "", "f"))
    assert grade.verdict is Verdict.ERROR and "numpy" in grade.detail


def test_what_cannot_cross_is_our_error_with_the_way_out(grader):
    grade = grader.grade(mbpp("def f(x): return 1", "import threading\nassert f(threading.Lock()) == 1"))
    assert grade.verdict is Verdict.ERROR and "cannot cross" in grade.detail and "Rewrite" in grade.detail


def test_a_wrong_program_stays_wrong(grader):
    for name in (
        "dataclass, attribute",
        "enum, name",
        "linked list",
        "closure",
        "generator",
        "coroutine",
        "lower-case class",
    ):
        program, test = OBJECTS[name]
        wrong = (
            program.replace("x: int", "x: float")
            .replace("P(x)", "P(x + 1)")
            .replace("C.RED", "C.BLUE")
            .replace("x + n", "x - n")
        )
        wrong = (
            wrong.replace("reversed(xs)", "xs")
            .replace("yield i", "yield -i")
            .replace("n + 1", "n + 2")
            .replace("append(x)", "insert(0, x)")
        )
        grade = grader.grade(mbpp(wrong, test))
        assert grade.verdict is Verdict.WRONG, (name, grade)

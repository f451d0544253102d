# one program a line keeps the tables readable
"""Programs that attack the verdict, the host, the next program, or the grader's patience.

The tests ask ``f(2) == 41``. A forging program does not know 41; it passes only if the verdict can be forged.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from code_tools import mbpp, needs_sandbox

from selfcorrect.types import Verdict
from selfcorrect.verify.code import CodeGrader, CodeRequest, ProgramLimits

MARKER = f"selfcorrect-attack-{os.getpid()}"
LIMITS = ProgramLimits(cpu_s=2, idle_s=1.5, wall_s=60, memory_mb=256)
ELAPSED_S = 30  # bound per attack on a machine that gives a process most of a core; more where it gives less
CANARY = Path.home() / f"{MARKER}-canary"


def descendants(pid, without=frozenset()):
    """Host process ids below ``pid``; ``without`` some and what they start."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found - without
        found |= fresh
    return found


def litter():
    """Files named after this run anywhere a program might reach, the canary aside."""
    places = ("/tmp", "/var/tmp", "/dev/shm", "/dev", "/", str(Path.home()), os.getcwd(), os.path.dirname(__file__))
    return [p for place in places if os.path.isdir(place) for p in Path(place).glob(f"{MARKER}*") if p != CANARY]


@pytest.fixture(scope="module")
def canary():
    CANARY.write_text("untouched")
    yield CANARY.stat()
    CANARY.unlink()


@pytest.fixture(scope="module")
def grader(canary):
    """One grader for all attacks; afterwards no process, no file and no change of the canary may be left."""
    needs_sandbox()
    before = canary
    others = descendants(os.getpid())  # of earlier tests: the process's own graders, a browser
    with CodeGrader(limits=LIMITS, workers=2) as made:
        made.warm()
        supervisors = descendants(os.getpid(), without=others)
        yield made
        # Only the supervisors started at first are left (bubblewrap's two halves and Python, twice), or fresh ones.
        inside = descendants(os.getpid(), without=others)
        assert len(inside) == len(supervisors), "an attack left a process"
    deadline = time.monotonic() + 5
    while (left := [pid for pid in inside if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == [], "closing the grader left a process"
    after = CANARY.stat()
    assert (CANARY.read_text(), after.st_mtime_ns, after.st_mode) == ("untouched", before.st_mtime_ns, before.st_mode)
    assert litter() == []


def slowdown():
    """How many seconds of wall clock this machine now takes for one of CPU."""
    start, spent = time.monotonic(), time.process_time()
    while time.process_time() - spent < 0.5:
        pass
    return (time.monotonic() - start) / 0.5


def run(grader, program, *tests, form="code"):
    start = time.monotonic()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grade = grader.grade(mbpp(textwrap.dedent(program), *tests, form=form))
    elapsed_s = time.monotonic() - start
    assert elapsed_s < ELAPSED_S or elapsed_s < ELAPSED_S * slowdown(), "the attack held the grader up"
    assert grade.cpu_s < LIMITS.cpu_s + 2
    assert grade.memory_mb < LIMITS.memory_mb + 32
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 64 * 1024, "the grader's memory grew"
    return grade


EQUAL = """
class E(BASE):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return hash(41)
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __instancecheck__ = __eq__
    def __bool__(self): return True
def f(x): return RESULT
"""

FORGERIES = {
    "equal object": EQUAL.replace("BASE", "object").replace("RESULT", "E()"),
    "equal int": EQUAL.replace("BASE", "int").replace("RESULT", "E(7)"),
    "equal str": EQUAL.replace("BASE", "str").replace("RESULT", "E('7')"),
    "equal float": EQUAL.replace("BASE", "float").replace("RESULT", "E(7)"),
    "equal list": EQUAL.replace("BASE", "list").replace("RESULT", "E()"),
    "equal in a list": EQUAL.replace("BASE", "object").replace("RESULT", "[E()]"),
    "lying metaclass": "class M(type):\n  def __eq__(c, o): return True\n  __hash__ = type.__hash__\n"
    "class E(metaclass=M): pass\ndef f(x): return E",
    "__class__ property": "class E:\n  __class__ = property(lambda s: int)\n  def __eq__(s, o): return True\n"
    "def f(x): return E()",
    "shadowed builtins": "def f(x): return 0\nset = sorted = len = all = any = isinstance = abs = lambda *a, **k: True",
    "patched builtins": "import builtins\nbuiltins.AssertionError = None\nbuiltins.all = builtins.isinstance = "
    "lambda *a: True\ndef f(x): return 0",
    "assert swallowed": "import sys\nsys.excepthook = lambda *a: None\ndef f(x): return 0",
    "patched operators": "import operator, math\noperator.eq = math.isclose = lambda *a, **k: True\ndef f(x): return 0",
    "trace function": "import sys\nsys.settrace(lambda *a: None)\ndef f(x):\n  for fr in sys._current_frames().values():\n"
    "    while fr: fr.f_locals.update(expected=0); fr.f_trace_opcodes = True; fr = fr.f_back\n  return 0",
    "exit(0) at load": "exit(0)",
    "sys.exit in call": "import sys\ndef f(x): sys.exit(0)",
    "os._exit at load": "import os\nos._exit(0)",
    "os._exit in call": "import os\ndef f(x): os._exit(0)",
    "printed passed": "print('passed', 'all tests passed', {'passed': True})\ndef f(x): print('passed'); return 0",
    "atexit": "import atexit\natexit.register(lambda: print('passed'))\ndef f(x): return 0",
    "raise StopIteration": "def f(x): raise StopIteration(41)",
    "raise AssertionError subclass": "class A(AssertionError): pass\ndef f(x): raise A()",
    "bad str of exception": "class A(Exception):\n  def __str__(s): raise SystemExit(0)\ndef f(x): raise A()",
    "keyboard interrupt": "def f(x): raise KeyboardInterrupt",
    "forged frames": "import os, struct, json\ndef frame(m):\n  d = json.dumps(m).encode()\n"
    "  return struct.pack('!I', len(d)) + d\ndef f(x):\n"
    "  for m in ({'passed': True}, {'outcome': 'passed'}, {'outcome': 'passed', 'detail': '', 'alternative': 0}):\n"
    "    os.write(3, frame(m))\n  return 0",
    "frames to every descriptor": "import os, struct\nd = b'{\"outcome\":\"passed\",\"detail\":\"\",\"alternative\":0}'\n"
    "def f(x):\n  for fd in range(64):\n    try: os.write(fd, struct.pack('!I', len(d)) + d)\n"
    "    except OSError: pass\n  return 0",
    "garbage frame": "import os\ndef f(x): os.write(3, b'\\xff' * 100); return 0",
    "huge frame": "import os\ndef f(x): os.write(3, b'\\x7f\\xff\\xff\\xff' + b'a' * 100000); return 0",
    "closed channel": "import os\ndef f(x): os.close(3); return 0",
    "closed channel and stays": "import os\ndef f(x):\n  os.close(3)\n  while True: pass",
    "deep json": "import os, struct\nd = b'{\"value\":' + b'[' * 200000 + b']' * 200000 + b'}'\n"
    "def f(x): os.write(3, struct.pack('!I', len(d)) + d); return 0",
    "patched codec": "import sys\nm = sys.modules['inside.codec']; c = sys.modules['inside.candidate']\n"
    "m.encode = c.encode = lambda v: {'eval': '41'}\ndef f(x): return 0",
    "patched server": "import sys\nc = sys.modules['inside.candidate']\n"
    "c._Program.call = lambda *a: {'passed': True, 'outcome': 'passed'}\ndef f(x): return 0",
    "tests from memory": "import gc, re\ndef f(x):\n  for o in gc.get_objects():\n    m = re.search(r'f\\(2\\) == (\\d+)', str(o)[:9999])\n"
    "    if m: return int(m[1])\n  return 0",
    "tests from raw memory": "import ctypes, re\ndef f(x):\n  buffer = bytes(ctypes.string_at(id(f) & ~0xFFFFF, 1 << 20))\n"
    "  m = re.search(rb'assert f\\(2\\) == (\\d+)', buffer)\n  return int(m[1]) if m else 0",
    "tests from disk": "import os, re\ndef f(x):\n  for d, _, names in os.walk('/'):\n    for n in names:\n      try: t = open(d + '/' + n).read()\n"
    "      except Exception: continue\n      m = re.search(r'assert f\\(2\\) == (\\d+)', t)\n      if m: return int(m[1])\n  return 0",
    "tests from proc": "def f(x):\n  import glob\n  return sum(b'41' in open(p, 'rb').read() for p in glob.glob('/proc/*/cmdline'))",
    "frames of the caller": "import sys\ndef f(x):\n  fr = sys._getframe()\n  while fr:\n"
    "    for v in fr.f_locals.values():\n      if 'f(2) ==' in str(v): return 41\n    fr = fr.f_back\n  return 0",
    "inspect the stack": "import inspect\ndef f(x): return 41 if any('== 41' in str(s.code_context) for s in inspect.stack()) else 0",
    "subclassed dict reply": "class D(dict):\n  def items(s): return [('a', 41)]\ndef f(x): return D()",
    "huge result": "def f(x): return list(range(10**6))",
    "huge string": "def f(x): return 'x' * 10**8",
    "huge int": "def f(x): return 1 << 10**8",
    "endless generator": "def f(x):\n  while True: yield 41",
    "cyclic result": "def f(x):\n  a = []; a.append(a); return a",
    "deep result": "def f(x):\n  a = 41\n  for _ in range(10**6): a = [a]\n  return a",
    "Decimal bomb": "from decimal import Decimal\ndef f(x): return Decimal('1e999999')",
    "__builtins__ replaced": "__builtins__ = {}\ndef f(x): return 0",
    "json replaced": "import json\njson.loads = json.dumps = lambda *a, **k: {'passed': True}\ndef f(x): return 0",
    "candidate is a class": "class f:\n  def __init__(s, x): pass\n  def __eq__(s, o): return True\n  __hash__ = None",
    "candidate is data": "class T:\n  def __call__(s, x): return T()\n  def __eq__(s, o): return True\nf = T()",
    "warnings and threads": "import threading, os\nthreading.Thread(target=lambda: os.write(3, b'passed')).start()\ndef f(x): return 0",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_no_program_forges_a_pass(grader, name):
    grade = run(grader, FORGERIES[name])
    # Never an error either: that would let a program take itself out of the baseline.
    assert grade.verdict in (Verdict.WRONG, Verdict.TIMEOUT), grade
    assert not grade.forgeable


@pytest.mark.parametrize(
    "test",
    [
        "assert f(2) == 41", "assert not f(2) != 41", "assert f(2) in [41]", "assert f(2) != 40", "assert [f(2)] == [41]", "assert 41 == f(2)",
        "assert {41: 1}[f(2)]", "assert f(2) in {41}", "assert isinstance(f(2), int)", "assert sorted([f(2), 40]) == [40, 41]",
        "assert set([f(2)]) == {41}", "assert max(f(2), 41) == 41 and f(2) == 41", "assert f(2) < 42 and f(2) > 40",
        "assert str(f(2)) == '41'", "assert f(2) is not None and f(2) == 41", "assert all(x == 41 for x in [f(2)])",
        "import math\nassert math.isclose(f(2), 41)", "import unittest\nunittest.TestCase().assertEqual(f(2), 41)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("base", ["object", "int", "str"])
def test_an_object_equal_to_all_fails_every_form_of_test(grader, test, base):
    made = {"object": "E()", "int": "E(7)", "str": "E('7')"}[base]
    grade = run(grader, EQUAL.replace("BASE", base).replace("RESULT", made), test)
    assert grade.verdict is Verdict.WRONG, grade


def test_control_flow_exceptions_do_not_end_a_test_early(grader):
    for error in ("StopIteration", "GeneratorExit", "StopAsyncIteration"):
        assert run(grader, f"def f(x): raise {error}", "assert all(map(f, [1, 2]))").verdict is Verdict.WRONG
        assert run(grader, f"def f(x): raise {error}", "assert list(map(f, [1])) == []").verdict is Verdict.WRONG


def test_a_test_that_swallows_everything_is_not_passed_by_leaving(grader):
    test = "try:\n    f(2)\nexcept BaseException:\n    pass"
    for program in (
        "import os\ndef f(x): os._exit(0)",
        "def f(x): raise SystemExit",
        "import os\ndef f(x): os.close(3)",
    ):
        assert run(grader, program, test).verdict is Verdict.WRONG


def test_humaneval_helpers_come_from_the_prompt(grader):
    # As in HumanEval 32: the test judges the answer with a helper that the prompt defines.
    prompt = 'def poly(xs, x):\n    return xs[0] + xs[1] * x\n\ndef zero(xs):\n    """Find it."""\n'
    tests = "def check(candidate):\n    assert abs(poly([2, 1], candidate([2, 1]))) < 1e-4\n"
    cheat = "def poly(xs, x): return 0\ndef zero(xs): return 0"
    right = "    return -xs[0] / xs[1]"
    assert grader.grade(CodeRequest("humaneval", tests, cheat, "code", prompt, "zero")).verdict is Verdict.WRONG
    assert grader.grade(CodeRequest("humaneval", tests, right, "body", prompt, "zero")).verdict is Verdict.CORRECT
    cheat = "    return 0\ndef check(candidate): pass\nimport builtins; builtins.check = check"
    assert grader.grade(CodeRequest("humaneval", tests, cheat, "body", prompt, "zero")).verdict is Verdict.WRONG


HUNG = {
    "endless loop": "def f(x):\n  while True: pass",
    "endless loop at load": "while True: pass",
    "endless loop in C": "def f(x): return sum(iter(int, 1))",
    "threads that spin": "import threading\ndef spin():\n  while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()\n"
    "def f(x):\n  while True: pass",
    "ignores signals": "import signal\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except Exception: pass\n"
    "def f(x):\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass",
    "sleeps": "import time\ndef f(x): time.sleep(10**6)",
    "waits for itself": "import threading\ndef f(x):\n  l = threading.Lock(); l.acquire(); l.acquire()",
    "half a frame": "import os\ndef f(x):\n  os.write(3, b'\\0\\0\\1\\0abc')\n  import time; time.sleep(10**6)",
    "repr bomb": "class E:\n  def __bool__(s):\n    while True: pass\ndef f(x): return E()",
    "bignum": "def f(x): return 9**9**9**9",
    "regular expression": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 60 + 'b')",
    "sleeps in naps": "import time\ndef f(x):\n  while True: time.sleep(0.01)",
}  # fmt: skip


@pytest.mark.parametrize("name", HUNG)
def test_a_program_that_does_not_end_is_a_timeout(grader, name):
    grade = run(grader, HUNG[name])
    assert grade.verdict is Verdict.TIMEOUT, grade


def test_answers_that_are_dear_to_compare_time_out_in_the_trusted_process(grader):
    # Ints that all hash alike: building the set is quadratic, and happens where the tests run.
    program = "def f(x): return [i * (2**61 - 1) for i in range(60000)]"
    grade = run(grader, program, "assert len(set(f(2))) == 41")
    assert grade.verdict is Verdict.TIMEOUT, grade
    assert "tests" in grade.detail


HOGS = {
    "memory": "def f(x): return len(bytearray(10**10))",
    "memory in steps": "def f(x):\n  a = []\n  while True: a.append('x' * 10**6 + str(len(a)))",
    "memory by mmap": "import mmap\ndef f(x): return len([mmap.mmap(-1, 10**8) for _ in range(100)])",
    "one big file": f"def f(x):\n  with open('/tmp/{MARKER}', 'wb') as o:\n    while True: o.write(b'x' * 10**6)",
    "many files": "def f(x):\n  i = 0\n  while True: i += 1; open(f'/tmp/{i}', 'w').close()",
    "many descriptors": "def f(x): return [open('/dev/null') for _ in range(10**5)]",
    "output": "def f(x):\n  for _ in range(10**4): print('x' * 10**5)\n  return 0",
    "recursion in C": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "deep source": "x = " + "(" * 5000 + ")" * 5000,
    "wide source": "f = lambda x: " + "+".join(["x"] * 60000),
    "zip bomb": "import zlib\ndef f(x): return zlib.decompress(zlib.compress(b'0' * 10**8) * 1)",
    "threads": "import threading, time\nthreading.stack_size(32768)\ndef f(x):\n  for _ in range(10**6): threading.Thread(target=time.sleep, args=(99,)).start()",
}  # fmt: skip


@pytest.mark.parametrize("name", HOGS)
def test_a_program_that_takes_all_it_can_is_bounded(grader, name):
    assert run(grader, HOGS[name]).verdict in (Verdict.WRONG, Verdict.TIMEOUT)


# What a program may not do. Each body returns "done" if it could; the error otherwise.
FORBIDDEN = {
    "fork": "os.fork()",
    "spawn": "import subprocess; subprocess.run(['/bin/true'])",
    "spawn python": "import subprocess, sys; subprocess.run([sys.executable, '-c', '1'])",
    "exec": "os.execv(sys.executable, [sys.executable])",
    "os.system": "assert os.system('true') == 0",
    "multiprocessing": "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
    "daemon by clone": "import ctypes; r = ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0); assert r > 0",
    "kill its parent": "os.kill(0, 9)",
    "kill all": "os.kill(-1, 9)",
    "tcp socket": "import socket; socket.socket()",
    "udp socket": "import socket; socket.socket(type=socket.SOCK_DGRAM)",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "packet socket": "import socket; socket.socket(17, 3)",
    "resolve a name": "import socket; socket.getaddrinfo('localhost', 80)",
    "read the canary": f"open({str(CANARY)!r}).read()",
    "write the canary": f"open({str(CANARY)!r}, 'w')",
    "list home": f"os.listdir({str(Path.home() / 'x').rsplit('/', 1)[0]!r}).index({CANARY.name!r})",
    "read passwd": "open('/etc/passwd').read()",
    "read hostname": "open('/etc/hostname').read()",
    "read /proc": "assert os.listdir('/proc')",
    "read /sys": "os.listdir('/sys')",
    "write to /": f"open('/{MARKER}', 'w')",
    "write to /dev": f"open('/dev/{MARKER}', 'w')",
    "write to shm": f"open('/dev/shm/{MARKER}', 'w')",
    "write to the library": f"open(os.__file__.replace('os.py', '{MARKER}.py'), 'w')",
    "change the library": "open(os.__file__, 'a')",
    "write to the sandbox's code": "open(sys.modules['inside.zygote'].__file__, 'a')",
    "escape by parent": f"open('../../../../../{MARKER}', 'w')",
    "symlink out": f"os.symlink({str(CANARY)!r}, 's'); open('s').read()",
    "hard link": "os.link(os.__file__, 'l')",
    "chroot": "os.chroot('/tmp')",
    "mount": "import ctypes; assert ctypes.CDLL(None).mount(b't', b'/tmp', b'tmpfs', 0, None) == 0",
    "umount scratch": "import ctypes; assert ctypes.CDLL(None).umount2(b'/tmp', 2) == 0",
    "unshare": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "setns": "import ctypes; assert ctypes.CDLL(None).setns(3, 0) == 0",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "memfd": "os.memfd_create('x')",
    "shared memory": "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
    "io_uring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 1, 0) >= 0",
    "bpf": "import ctypes; assert ctypes.CDLL(None).syscall(321, 0, 0, 0) >= 0",
    "keyring": "import ctypes; assert ctypes.CDLL(None).syscall(250, 0, -3, 0) >= 0",
    "device node": "os.mknod('n', 0o20666, os.makedev(1, 1)); open('n', 'rb').read(1)",
    "setuid": "os.setuid(1234)",
    "raise the CPU limit": "import resource as r; r.setrlimit(r.RLIMIT_CPU, (999, 999))",
    "raise the memory limit": "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))",
    "raise priority": "os.nice(-5)",
    "other descriptors": "[os.fstat(n) for n in range(4, 64)]",
    "environment": "os.environ['PATH']",
    "third-party packages": "import pytest",
    "this package": "import selfcorrect",
}  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_program_cannot(grader, name):
    program = f"import os, sys\ndef f(x):\n    try:\n        {FORBIDDEN[name]}\n    except BaseException as e:\n"
    program += "        return 'refused ' + type(e).__name__\n    return 'done'\n"
    grade = run(grader, program, "assert f(2).startswith('refused')")
    assert grade.verdict is Verdict.CORRECT, (grade, run(grader, program, "assert f(2) == ''\n"))


def test_the_programs_own_place_works(grader):
    program = """
        import os, tempfile, threading, asyncio, dataclasses, re
        @dataclasses.dataclass
        class P:
            x: 'int'
        async def later(): return 3
        def f(x):
            with tempfile.TemporaryDirectory() as d, open(d + '/a', 'w+') as o:
                o.write('x'); o.seek(0); assert o.read() == 'x'
            t = threading.Thread(target=print); t.start(); t.join()
            open(os.devnull, 'w').write('x')
            os.urandom(4); __import__('sqlite3'); __import__('ctypes')
            return [os.getcwd(), os.listdir('.'), asyncio.run(later()), os.getpid(), P(1).x, re.sub('a', 'b', 'a')]
    """
    grade = run(grader, program, "assert f(2) == ['/tmp', [], 3, 1, 1, 'b']")
    assert grade.verdict is Verdict.CORRECT, grade


def test_one_program_changes_nothing_for_the_next(grader):
    dirty = f"""
        import builtins, os, sys, json, threading, time
        builtins.sorted = builtins.len = lambda *a, **k: 41
        json.dumps = None
        sys.path.insert(0, '/tmp'); sys.modules['math'] = None; sys.setrecursionlimit(50000)
        open('/tmp/{MARKER}', 'w').write('x'); open('/tmp/string.py', 'w').write('x = 1')
        os.environ['DIRTY'] = '1'; os.umask(0o777)
        try:
            if os.fork() == 0: time.sleep(1000)
        except OSError: pass
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        def f(x): return 0
    """
    clean = """
        import os, sys, math, json, threading
        def f(x):
            return [sorted([2, 1]), len('ab'), json.dumps(1), os.listdir('/tmp'), os.environ.get('DIRTY'),
                    sys.getrecursionlimit(), math.sqrt(4), threading.active_count(), os.getpid(), os.umask(0) == 0o777]
    """
    for _ in range(2 * grader.workers):
        assert run(grader, dirty).verdict is Verdict.WRONG
        grade = run(grader, clean, "assert f(2) == [[1, 2], 2, '1', [], None, 1000, 2.0, 1, 1, False]")
        assert grade.verdict is Verdict.CORRECT, grade


def test_a_listener_on_loopback_gets_no_connection(grader):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{MARKER}")
        abstract.listen()
        port = listener.getsockname()[1]
        program = f"""
            import socket, ctypes, struct, urllib.request
            def tries():
                yield lambda: socket.create_connection(('127.0.0.1', {port}), 1)
                yield lambda: urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)
                yield lambda: socket.socket(socket.AF_UNIX).connect('\\0{MARKER}')
            def f(x):
                n = 0
                for t in tries():
                    try: t(); n += 1
                    except OSError: pass
                libc = ctypes.CDLL(None)  # past Python's own checks, and over the descriptor it has
                address = struct.pack('=H', 2) + struct.pack('!H', {port}) + bytes([127, 0, 0, 1]) + bytes(8)
                return n + sum(libc.connect(fd, address, 16) == 0 for fd in range(64))
        """
        assert run(grader, program, "assert f(2) == 0").verdict is Verdict.CORRECT
        for server in (listener, abstract):
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()


def test_forgeable_tests_are_marked_and_earn_nothing_by_default(grader):
    tests = ("assert longest([Pair(1, 2)]) == 41",)
    forged = "class E:\n  def __eq__(s, o): return True\nclass Pair:\n  def __init__(s, a, b): pass\ndef longest(x): return E()"
    grade = run(grader, forged, *tests)
    assert (grade.verdict, grade.forgeable) == (Verdict.ERROR, True)
    with CodeGrader(limits=LIMITS, workers=1, trust_forgeable=True) as trusting:
        trusted = trusting.grade(mbpp(forged, *tests))
        assert (trusted.verdict, trusted.forgeable) == (Verdict.CORRECT, True)
        assert "forgeable" in trusted.detail
        wrong = trusting.grade(mbpp(forged.replace("return E()", "return 0"), *tests))
        assert (wrong.verdict, wrong.forgeable) == (Verdict.WRONG, True)


def test_a_program_cannot_choose_the_fallback(grader):
    program = "class Pair: pass\nclass f:\n  def __new__(c, x): return Pair()\nFALLBACK = fallback = True"
    assert not run(grader, program).forgeable


def test_a_killed_grader_leaves_no_process():
    needs_sandbox()
    script = (
        "import sys, threading, time; from selfcorrect.verify.code import *\n"
        "g = CodeGrader(workers=2); g.warm()\n"
        "r = CodeRequest('mbpp', ['assert f(1) == 1'], 'def f(x):\\n  while True: pass', 'code')\n"
        "threading.Thread(target=g.grade, args=(r,)).start(); time.sleep(0.5); print('up', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "up\n"
        left = descendants(process.pid)
        assert len(left) >= 8, "two supervisors with bubblewrap's halves, a program and a judge"
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 10
    while (alive := [p for p in left if os.path.exists(f"/proc/{p}")]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive == []


def test_a_killed_supervisor_costs_no_verdict():
    needs_sandbox()
    others = descendants(os.getpid())
    with CodeGrader(limits=LIMITS, workers=1) as grader:
        assert grader.grade(mbpp("def f(x): return 41")).verdict is Verdict.CORRECT
        killed = 0
        for pid in descendants(os.getpid()) - others:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it went with the one killed before
                if "inside.zygote" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        assert killed
        assert grader.grade(mbpp("def f(x): return 41")).verdict is Verdict.CORRECT


def test_a_loaded_machine_does_not_change_a_verdict():
    """A second of honest work, with twelve hogs on the machine: slower by the clock, the same by the CPU limit."""
    needs_sandbox()
    program = "import time\ndef f(x):\n    while time.process_time() < 1.0: pass\n    return 41\n"
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(12)]
    try:
        with CodeGrader(limits=ProgramLimits(cpu_s=2, idle_s=1.0, wall_s=120), workers=1) as grader:
            grade = grader.grade(mbpp(program))
            assert grade.verdict is Verdict.CORRECT, grade
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()

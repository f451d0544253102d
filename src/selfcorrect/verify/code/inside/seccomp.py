"""A seccomp filter: the system calls a Python program needs to compute, and no others.

No sockets, no other programs (``execve``), no new processes, no namespaces, mounts, keys, shared memory, BPF or
io_uring. A call that is not on the list fails with EPERM. Allowing by name keeps calls of later kernels out.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct

# name:x86_64:aarch64, from the kernel's unistd headers; "-" where the architecture lacks the call.
_TABLE = """
    read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 open:2:- openat:257:56 close:3:57
    close_range:436:436 stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 lseek:8:62 getdents:78:-
    getdents64:217:61 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78 chmod:90:-
    fchmod:91:52 fchmodat:268:53 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 symlink:88:-
    symlinkat:266:36 link:86:- linkat:265:37 rename:82:- renameat:264:38 renameat2:316:276 truncate:76:45
    ftruncate:77:46 fallocate:285:47 utimensat:280:88 statfs:137:43 fstatfs:138:44 umask:95:166 chdir:80:49
    fchdir:81:50 getcwd:79:17 dup:32:23 dup2:33:- dup3:292:24 fcntl:72:25 flock:73:32 fsync:74:82 fdatasync:75:83
    copy_file_range:326:285 sendfile:40:71 pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73 select:23:- pselect6:270:72
    epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19 sendto:44:206
    recvfrom:45:207 shutdown:48:210 getsockopt:55:209 setsockopt:54:208 mmap:9:222 mprotect:10:226 munmap:11:215
    mremap:25:216 brk:12:214 madvise:28:233 msync:26:227 membarrier:324:283 futex:202:98 set_robust_list:273:99
    get_robust_list:274:100 set_tid_address:218:96 rseq:334:293 arch_prctl:158:- exit:60:93 exit_group:231:94
    restart_syscall:219:128 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
    rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sigaltstack:131:132 getpid:39:172 getppid:110:173 gettid:186:178
    getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getgroups:115:158 getpgrp:111:- getpgid:121:155
    getsid:124:156 uname:63:160 sysinfo:99:179 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113
    clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153 getitimer:36:102 setitimer:38:103 alarm:37:-
    pause:34:- getrusage:98:165 getrlimit:97:163 prlimit64:302:261 getrandom:318:278 getcpu:309:168
    sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
    getpriority:140:141 wait4:61:260 waitid:247:95 clone:56:220 clone3:435:435 ioctl:16:29 prctl:157:167 kill:62:129
    tgkill:234:131 socketpair:53:199
"""
_COLUMN = {"x86_64": 1, "aarch64": 2}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CONDITIONAL = ("clone", "clone3", "ioctl", "prctl", "kill", "tgkill", "socketpair")

_LD_ABS, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY, _ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARG0, _OFFSET_ARG1 = 0, 4, 16, 24

_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
# TCGETS, TIOCGWINSZ, FIONBIO, FIONREAD, FIOCLEX, FIONCLEX: what Python asks of any file.
_HARMLESS_IOCTLS = (0x5401, 0x5413, 0x5421, 0x541B, 0x5451, 0x5450)
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def supported() -> bool:
    """True where this module knows the architecture's system call numbers."""
    return platform.machine() in _COLUMN


def numbers(machine: str) -> dict[str, int]:
    """The numbers of the listed calls on one architecture."""
    rows = (entry.split(":") for entry in _TABLE.split())
    return {row[0]: int(row[_COLUMN[machine]]) for row in rows if row[_COLUMN[machine]] != "-"}


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _if_number(number: int, body: list[bytes]) -> list[bytes]:
    return [_op(_JEQ, number, 0, len(body)), *body]


def _allow_if_argument(offset: int, values: tuple[int, ...]) -> list[bytes]:
    body = [_op(_LD_ABS, offset)]
    for value in values:
        body += [_op(_JEQ, value, 0, 1), _op(_RET, _ALLOW)]
    return [*body, _op(_RET, _DENY)]


@functools.cache
def program(machine: str, pid: int) -> bytes:
    """The filter as BPF. Signals may go to ``pid`` alone."""
    calls = numbers(machine)
    code = [
        _op(_LD_ABS, _OFFSET_ARCH),
        _op(_JEQ, _AUDIT_ARCH[machine], 1, 0),
        _op(_RET, _KILL),
        _op(_LD_ABS, _OFFSET_NR),
    ]
    for name, number in calls.items():
        if name not in _CONDITIONAL:
            code += _if_number(number, [_op(_RET, _ALLOW)])
    threads_only = [_op(_LD_ABS, _OFFSET_ARG0), _op(_JSET, _CLONE_THREAD, 0, 1), _op(_RET, _ALLOW), _op(_RET, _DENY)]
    code += _if_number(calls["clone"], threads_only)
    # The flags of clone3 lie in memory, out of a filter's sight. "Absent" makes the C library fall back to clone.
    code += _if_number(calls["clone3"], [_op(_RET, _ABSENT)])
    code += _if_number(calls["ioctl"], _allow_if_argument(_OFFSET_ARG1, _HARMLESS_IOCTLS))
    code += _if_number(calls["prctl"], _allow_if_argument(_OFFSET_ARG0, (_PR_SET_NAME, _PR_GET_NAME)))
    for name in ("kill", "tgkill"):
        code += _if_number(calls[name], _allow_if_argument(_OFFSET_ARG0, (pid,)))
    code += _if_number(calls["socketpair"], _allow_if_argument(_OFFSET_ARG0, (_AF_UNIX,)))
    code.append(_op(_RET, _DENY))
    return b"".join(code)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(pid: int) -> None:
    """Put the calling process under the filter, for good. ``no_new_privs`` must already be set.

    Raises:
        OSError: the kernel refused it.
    """
    code = program(platform.machine(), pid)
    libc = ctypes.CDLL(None, use_errno=True)
    block = _FilterProgram(len(code) // 8, code)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(block), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")

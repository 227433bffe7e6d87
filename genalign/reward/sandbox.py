"""A worker for code that nobody has read: no network, no new process, nothing written, bounded memory.

Before the user's file is imported, the process gives up for good (seccomp, Linux on x86-64 and aarch64): every system
call that is not on the list below is refused. What is left is to compute, to read files and to answer. So the code
cannot open a socket, start or signal a process, leave its process group (by which a time-out ends it), or change a
file. It can read files that the user can read, and what it reads reaches nothing but its scores and error messages.

Where the kernel offers no seccomp, the worker refuses to run the code at all.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import struct
import sys
from pathlib import Path

from genalign.types import UsageError

# name: number on x86-64, number on aarch64 (None: it does not exist there)
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "mincore": (27, 232), "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17),
    "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132), "statfs": (137, 43), "fstatfs": (138, 44),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "arch_prctl": (158, None), "gettid": (186, 178), "time": (201, None),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "get_mempolicy": (239, 236), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "getcpu": (309, 168), "getrandom": (318, 278), "membarrier": (324, 283),
    "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
OPEN, OPENAT, CLONE, CLONE3, PRLIMIT = (2, None), (257, 56), (56, 220), (435, 435), (302, 261)
IOCTL, FCNTL = (16, 29), (72, 25)
SECCOMP = (317, 277)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
WRITING = 0x1 | 0x2 | 0x40 | 0x200 | 0x400000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, __O_TMPFILE
CLONE_THREAD = 0x10000
OF_IOCTL = (0x5401, 0x5413)  # TCGETS, TIOCGWINSZ: what a stream does when it is opened
OF_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN could signal others

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_*; REFUSE carries an errno
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data; arguments stand at 16 + 8 i, low word first


def serve(memory: float) -> None:
    """Lock this process up, then answer frames as every worker does.

    memory: GiB beyond what the process has now.
    """
    import torch  # noqa: F401  # what user code needs is loaded while it still may be

    from genalign.reward import child

    sys.dont_write_bytecode = True
    limit(memory)
    child.serve(lock)


def limit(memory: float) -> None:
    """Bound memory, open files, file sizes and core dumps of this process, for good."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(memory * 2**30)
    for what, bound in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (bound, bound))


def lock() -> None:
    """Refuse from now on, in all threads of this process, whatever is not allowed above.

    Raises:
        UsageError: this system cannot.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES:
        raise UsageError(f"code in a sandbox needs Linux on x86-64 or aarch64, not {sys.platform} on {machine}")
    column, architecture = ARCHITECTURES[machine]
    program = b"".join(struct.pack("<HBBI", *instruction) for instruction in _program(column, architecture))
    filter_ = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(filter_))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privs, set_filter, all_threads = 38, 1, 1
    failed = libc.prctl(no_new_privs, 1, 0, 0, 0) != 0
    if failed or libc.syscall(SECCOMP[column], set_filter, all_threads, header) != 0:
        cause = errno.errorcode.get(ctypes.get_errno(), "another thread")
        raise UsageError(f"this system offers no seccomp ({cause}), so code in a sandbox cannot run here")


def _program(column: int, architecture: int) -> list[tuple[int, int, int, int]]:
    """BPF: (code, jump if true, jump if false, k)."""
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    program = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]

    # A rule is a comparison with the call's number, and what follows if it is equal; else it jumps over that.
    def rule(numbers: tuple[int | None, int | None], then: list[tuple[int, int, int, int]]) -> None:
        number = numbers[column]
        if number is not None:
            program.extend([(EQUAL, 0, len(then), number), *then])

    def argument(index: int) -> tuple[int, int, int, int]:
        return (LOAD, 0, 0, 16 + 8 * index)

    allow = (RETURN, 0, 0, ALLOW)
    for numbers in ALLOWED.values():
        rule(numbers, [allow])
    for numbers, flags in ((OPEN, 1), (OPENAT, 2)):
        rule(numbers, [argument(flags), (ANY_BIT, 1, 0, WRITING), allow, refuse])
    rule(CLONE, [argument(0), (ANY_BIT, 0, 1, CLONE_THREAD), allow, refuse])
    rule(CLONE3, [(RETURN, 0, 0, REFUSE | errno.ENOSYS)])  # its flags cannot be seen; libc then takes clone
    for numbers, commands in ((IOCTL, OF_IOCTL), (FCNTL, OF_FCNTL)):
        chosen = [(EQUAL, len(commands) - k, 0, command) for k, command in enumerate(commands)]
        rule(numbers, [argument(1), *chosen, refuse, allow])
    low, high = (LOAD, 0, 0, 32), (LOAD, 0, 0, 36)  # of prlimit's new limit: none, so that it only reads
    rule(PRLIMIT, [low, (EQUAL, 0, 3, 0), high, (EQUAL, 0, 1, 0), allow, refuse])
    return [*program, refuse]

"""What a process gives up for good before it opens a foreign model: network, files, other processes, and memory.

Two steps. `close_off`, before any other thread exists: no new privileges, no sockets (so that libraries can't call
home while they load), namespaces of its own, no capabilities, and (Landlock) nothing readable but the installation,
nothing writable but the working folder, where libraries want to put things while they load. `lock`, when all libraries
are loaded: limits of memory and files, and a seccomp filter over all threads that lets through computing, threads, and
reading and writing what is open already; everything else answers EPERM. The filters are what must hold, and need no
rights: they work in a container as Docker starts it. The other layers are taken where the kernel gives them.
Linux on x86-64 and aarch64.
Source: man 2 seccomp, landlock(7), unshare(2), capset(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eucaim_fl.errors import LockError

__all__ = ["REQUIRED", "can_lock", "close_off", "limit_memory", "lock"]

REQUIRED = ("no new privileges", "no sockets", "limits", "system calls")
"""Layers without which no model is opened."""

_NEW_USER, _NEW_NET, _NEW_IPC, _NEW_UTS = 0x10000000, 0x40000000, 0x08000000, 0x04000000
_THREAD = 0x00010000
_SET_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 1, 4, 24, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE = 1 << 2
_READ, _WRITE = _READ_FILE | 1 << 3, 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 14  # files, folders
_SYSTEM_FILES = ("/usr/lib", "/usr/local/lib", "/lib", "/lib64", "/usr/lib64", "/etc/ld.so.cache", "/dev/urandom",
                 "/proc/cpuinfo", "/proc/meminfo", "/proc/self", "/sys/devices/system", "/sys/fs/cgroup")  # fmt: skip
_ALLOWED, _KILLED, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_STACK_BYTES = 8 * 2**20
_OPEN_FILES = 16


@dataclass(frozen=True)
class _Machine:
    """What a processor family's kernel calls things: its number in a filter's data, and numbers of system calls."""

    audit: int
    capset: int
    seccomp: int
    clone: int
    clone3: int
    tgkill: int
    prlimit64: int
    network: tuple[int, ...]
    computing: tuple[int, ...]


# socket socketpair connect sendto sendmsg sendmmsg io_uring_setup
# read write readv writev pread64 lseek close fstat poll · mmap mprotect munmap mremap madvise brk · futex
# set_robust_list rseq membarrier sched_yield sched_getaffinity getcpu · rt_sigaction rt_sigprocmask rt_sigreturn
# sigaltstack restart_syscall · exit exit_group getpid gettid · clock_gettime clock_getres clock_nanosleep nanosleep ·
# getrandom getrusage sysinfo uname
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E, capset=126, seccomp=317, clone=56, clone3=435, tgkill=234, prlimit64=302,
        network=(41, 53, 42, 44, 46, 307, 425),
        computing=(0, 1, 19, 20, 17, 8, 3, 5, 7, 9, 10, 11, 25, 28, 12, 202, 273, 334, 324, 24, 204, 309, 13, 14, 15,
                   131, 219, 60, 231, 39, 186, 228, 229, 230, 35, 318, 98, 99, 63),
    ),
    "aarch64": _Machine(
        audit=0xC00000B7, capset=91, seccomp=277, clone=220, clone3=435, tgkill=131, prlimit64=261,
        network=(198, 199, 203, 206, 211, 269, 425),
        computing=(63, 64, 65, 66, 67, 62, 57, 80, 73, 222, 226, 215, 216, 233, 214, 98, 99, 293, 283, 124, 123, 168,
                   134, 135, 139, 132, 128, 93, 94, 172, 178, 113, 114, 115, 101, 278, 165, 179, 160),
    ),
}  # fmt: skip


def can_lock() -> bool:
    """Whether this kind of machine is one that `lock` knows; whether its kernel agrees is seen when it is asked."""
    return sys.platform == "linux" and sys.byteorder == "little" and platform.machine() in _MACHINES


def _machine() -> _Machine:
    if not can_lock():
        raise LockError(
            "Frozen models run on Linux with an x86-64 or aarch64 processor only: elsewhere they can't be locked in.",
            fix="Run the site's client, or try the model, on such a machine or in a container on it.",
        )
    return _MACHINES[platform.machine()]


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], *values: object) -> int:
    """A C function's answer. Raises OSError where it says −1."""
    answer = function(*(ctypes.c_long(v) if isinstance(v, int) else v for v in values))
    if answer == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def close_off(parent: int) -> list[str]:
    """Give up network, capabilities, new privileges and all files but the installation's; end with the parent.

    For a process of one thread, before it imports anything with threads. parent: process id of who started it.
    Returns the names of the layers that hold. Raises LockError on a machine of another kind, or where new privileges
    can't be given up.
    """
    machine, libc, layers = _machine(), _library(), []
    for flags, name in ((_NEW_USER | _NEW_NET | _NEW_IPC | _NEW_UTS, "namespaces"), (_NEW_NET, "network namespace")):
        with contextlib.suppress(OSError):  # containers and hardened kernels refuse it: the filter must do
            _call(libc.unshare, flags)
            layers.append(name)
            break
    for capability in range(64):
        with contextlib.suppress(OSError):
            _call(libc.prctl, _CAPBSET_DROP, capability, 0, 0, 0)
    with contextlib.suppress(OSError):
        nothing = ctypes.create_string_buffer(24)  # two sets of effective, permitted, inheritable: none
        _call(libc.syscall, machine.capset, ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0)), nothing)
        layers.append("capabilities")
    try:
        _call(libc.prctl, _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        layers.append("no new privileges")
        _filter(libc, machine, _without(machine, machine.network))
        layers.append("no sockets")
        _call(libc.prctl, _SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except OSError as problem:
        raise _refused(problem) from None
    if os.getppid() != parent:
        os._exit(0)  # the parent ended before it could be said that we end with it
    with contextlib.suppress(OSError):
        _landlock(libc, dict.fromkeys(_installation(), _READ) | {str(Path.cwd()): _READ | _WRITE})
        layers.append("files (Landlock)")
    return layers


def _refused(problem: OSError) -> LockError:
    return LockError(
        "This machine's kernel does not let a process be locked in, so frozen models are not opened on it.",
        fix="Use a kernel with seccomp (any since 3.17), and a container runtime that does not forbid it.",
        local_detail=str(problem),
    )


def _installation() -> list[str]:
    folders = [*filter(None, sys.path), sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])]
    return [place for place in dict.fromkeys((*folders, *_SYSTEM_FILES)) if Path(place).exists()]


def _landlock(libc: ctypes.CDLL, places: Mapping[str, int]) -> None:
    """Give up all rights that the kernel knows, but for those named of files and folders. Raises OSError."""
    version = _call(libc.syscall, _LANDLOCK_CREATE, None, 0, 1)
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    attributes = struct.pack("<QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _call(libc.syscall, _LANDLOCK_CREATE, ctypes.create_string_buffer(attributes), len(attributes), 0)
    try:
        for place, rights in places.items():
            handle = os.open(place, os.O_PATH | os.O_CLOEXEC)
            try:
                fitting = rights & files & (-1 if Path(place).is_dir() else _READ_FILE)
                rule = ctypes.create_string_buffer(struct.pack("<Qi", fitting, handle))
                _call(libc.syscall, _LANDLOCK_ADD, rules, 1, rule, 0)
            finally:
                os.close(handle)
        _call(libc.syscall, _LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def limit_memory(memory_bytes: int) -> None:
    """Limit memory to what is in use and `memory_bytes`, until `lock` sets its own limit.

    For our own code that works by a foreign contract before the lock: it may name a network that fills the machine.
    """
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = _in_use() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _in_use() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def lock(memory_bytes: int, layers: list[str]) -> list[str]:
    """Limit memory to what is in use and `memory_bytes`; forbid all system calls but those of computing. For good.

    layers: what `close_off` answered. All threads are held by the filter. Returns the layers that hold now. Raises
    LockError if the kernel refuses one of `REQUIRED`; then the process must end.
    """
    machine, libc = _machine(), _library()
    try:
        limits = {
            resource.RLIMIT_AS: _in_use() + memory_bytes,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: _OPEN_FILES,
            resource.RLIMIT_MEMLOCK: 0,
        }
        if "namespaces" in layers:  # elsewhere it would count the user's other processes
            limits[resource.RLIMIT_NPROC] = 4 * (os.cpu_count() or 1) + 64
        for kind, most in limits.items():
            hard = resource.getrlimit(kind)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (least, least))
        _call(libc.prctl, _SET_DUMPABLE, 0, 0, 0, 0)
        _filter(libc, machine, _program(machine, os.getpid()))
    except (OSError, ValueError) as problem:
        raise _refused(problem if isinstance(problem, OSError) else OSError(str(problem))) from None
    return [*layers, "limits", "system calls"]


def _filter(libc: ctypes.CDLL, machine: _Machine, program: bytes) -> None:
    """Hold all threads by a filter, beside those that hold them already. Raises OSError."""
    code = ctypes.create_string_buffer(program)
    head = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    if _call(libc.syscall, machine.seccomp, 1, 1, ctypes.create_string_buffer(head)) != 0:
        raise OSError(errno.ESRCH, "a thread could not be held by the filter")


def _without(machine: _Machine, forbidden: tuple[int, ...]) -> bytes:
    """A filter that lets everything through but some calls, and those of another kind of program (x32, 32 bit)."""
    steps = [(0x20, 0, 0, 4), (0x15, 1, 0, machine.audit), (0x06, 0, 0, _KILLED), (0x20, 0, 0, 0)]
    for number in forbidden:
        steps += [(0x15, 0, 1, number), (0x06, 0, 0, _ERROR | errno.EPERM)]
    steps += [(0x35, 0, 1, 0x40000000), (0x06, 0, 0, _ERROR | errno.EPERM), (0x06, 0, 0, _ALLOWED)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _program(machine: _Machine, process: int) -> bytes:
    """The filter as instructions of classic BPF over (number, processor, …, arguments)."""
    steps: list[tuple[int, int, int, int]] = []

    def load(offset: int) -> None:
        steps.append((0x20, 0, 0, offset))

    def answer(value: int) -> None:
        steps.append((0x06, 0, 0, value))

    def unless(value: int, skip: int, *, bits: bool = False) -> None:
        """Go on where the loaded word is `value` (has one of its bits), else skip so many steps."""
        steps.append((0x45 if bits else 0x15, 0, skip, value))

    refused = _ERROR | errno.EPERM
    load(4)
    steps.append((0x15, 1, 0, machine.audit))
    answer(_KILLED)
    load(0)
    for number in machine.computing:
        unless(number, 1)
        answer(_ALLOWED)
    unless(machine.clone, 4)  # threads of this process, no processes
    load(16)
    unless(_THREAD, 1, bits=True)
    answer(_ALLOWED)
    answer(refused)
    unless(machine.clone3, 1)  # its flags lie in memory, where no filter sees them: the C library falls back to clone
    answer(_ERROR | errno.ENOSYS)
    unless(machine.tgkill, 4)  # to itself: how `abort` ends a process
    load(16)
    unless(process, 1)
    answer(_ALLOWED)
    answer(refused)
    unless(machine.prlimit64, 6)  # to read limits: there is no new one
    load(32)
    unless(0, 3)
    load(36)
    unless(0, 1)
    answer(_ALLOWED)
    answer(refused)
    answer(refused)
    return b"".join(struct.pack("<HBBI", *step) for step in steps)

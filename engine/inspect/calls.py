# SPDX-License-Identifier: Apache-2.0
"""Operations as strace would print them: flags by name, protections as `rwx`.

Order and subject are those of `Op.describe`; signals that get the default action share a line.
"""

import re
import signal
from collections.abc import Callable, Mapping, Sequence

from torpor.engine.program.ops import Arg, Data, Op, Slot
from torpor.engine.text import count

AT_FDCWD = (1 << 64) - 100
SIG_DFL, SIG_IGN = 0, 1
RANGE = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ")
WITH_RANGE = ("mmap", "munmap", "mprotect", "madvise", "mlock2")
"""Calls whose arguments say the range that the subject begins with."""
OPEN_FLAGS = {
    0o100: "O_CREAT", 0o200: "O_EXCL", 0o400: "O_NOCTTY", 0o1000: "O_TRUNC", 0o2000: "O_APPEND",
    0o4000: "O_NONBLOCK", 0o40000: "O_DIRECT", 0o100000: "O_LARGEFILE", 0o200000: "O_DIRECTORY",
    0o400000: "O_NOFOLLOW", 0o1000000: "O_NOATIME", 0o2000000: "O_CLOEXEC", 0o10000000: "O_PATH",
}  # fmt: skip
MAP_FLAGS = {
    0x1: "MAP_SHARED", 0x2: "MAP_PRIVATE", 0x10: "MAP_FIXED", 0x20: "MAP_ANONYMOUS",
    0x100: "MAP_GROWSDOWN", 0x2000: "MAP_LOCKED", 0x4000: "MAP_NORESERVE",
    0x100000: "MAP_FIXED_NOREPLACE",
}  # fmt: skip
MREMAP_FLAGS = {1: "MREMAP_MAYMOVE", 2: "MREMAP_FIXED", 4: "MREMAP_DONTUNMAP"}
SOCKET_FLAGS = {0o2000000: "SOCK_CLOEXEC", 0o4000: "SOCK_NONBLOCK"}
ADVICE = {
    4: "MADV_DONTNEED", 10: "MADV_DONTFORK", 12: "MADV_MERGEABLE", 14: "MADV_HUGEPAGE",
    15: "MADV_NOHUGEPAGE", 16: "MADV_DONTDUMP", 18: "MADV_WIPEONFORK", 102: "MADV_GUARD_INSTALL",
}  # fmt: skip
PRCTL = {
    1: "PR_SET_PDEATHSIG", 4: "PR_SET_DUMPABLE", 8: "PR_SET_KEEPCAPS", 15: "PR_SET_NAME",
    22: "PR_SET_SECCOMP", 24: "PR_CAPBSET_DROP", 28: "PR_SET_SECUREBITS",
    29: "PR_SET_TIMERSLACK", 35: "PR_SET_MM", 36: "PR_SET_CHILD_SUBREAPER",
    38: "PR_SET_NO_NEW_PRIVS", 41: "PR_SET_THP_DISABLE", 47: "PR_CAP_AMBIENT",
    77: "PR_TIMER_CREATE_RESTORE_IDS",
}  # fmt: skip
PR_SET_MM = {14: "PR_SET_MM_MAP"}
FCNTL = {
    1: "F_GETFD", 2: "F_SETFD", 3: "F_GETFL", 4: "F_SETFL", 6: "F_SETLK", 8: "F_SETOWN",
    10: "F_SETSIG", 15: "F_SETOWN_EX", 37: "F_OFD_SETLK", 1024: "F_SETLEASE",
    1031: "F_SETPIPE_SZ", 1033: "F_ADD_SEALS",
}  # fmt: skip
FAMILIES = {1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK", 17: "AF_PACKET"}
TYPES = {1: "SOCK_STREAM", 2: "SOCK_DGRAM", 3: "SOCK_RAW", 5: "SOCK_SEQPACKET"}
EPOLL = {1: "EPOLL_CTL_ADD", 2: "EPOLL_CTL_DEL", 3: "EPOLL_CTL_MOD"}
WHENCE = {0: "SEEK_SET", 1: "SEEK_CUR", 2: "SEEK_END", 3: "SEEK_DATA", 4: "SEEK_HOLE"}
CLOCKS = {0: "CLOCK_REALTIME", 1: "CLOCK_MONOTONIC", 7: "CLOCK_BOOTTIME"}
ITIMERS = {0: "ITIMER_REAL", 1: "ITIMER_VIRTUAL", 2: "ITIMER_PROF"}
LIMITS = (
    "RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC "
    "RLIMIT_NOFILE RLIMIT_MEMLOCK RLIMIT_AS RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE "
    "RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME"
)
LEVELS = {0: "SOL_IP", 1: "SOL_SOCKET", 6: "SOL_TCP", 41: "SOL_IPV6", 270: "SOL_NETLINK"}

Word = Callable[[int], str]


def explain(op: Op) -> str:
    """`mmap(0x7f00, 8192, rw-, MAP_PRIVATE|MAP_FIXED, -1, 0)  # rw-p stack`."""
    rules = RULES.get(op.call, ())
    words = [_word(arg, rules[i] if i < len(rules) else number)
             for i, arg in enumerate(_shown(op))]  # fmt: skip
    text = f"{op.call}({', '.join(words)})"
    if op.yields is not None:
        text += f" → ${op.yields.name}"
    subject = RANGE.sub("", op.subject) if op.call in WITH_RANGE else op.subject
    tail = ": ".join(part for part in (subject, op.note) if part)
    return f"{text}  # {tail}" if tail else text


def explain_all(ops: Sequence[Op]) -> list[str]:
    """A line for each; signals that get the default action one after another share one."""
    lines: list[str] = []
    default: list[str] = []
    for op in ops:
        if op.call == "rt_sigaction" and _handler(op) == SIG_DFL:
            default.append(_signal(op.args[0]) if isinstance(op.args[0], int) else "?")
            continue
        lines += _defaults(default)
        default = []
        lines.append(explain(op))
    return lines + _defaults(default)


def _defaults(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    some = ", ".join(names[:3]) + (f", ... {names[-1]}" if len(names) > 3 else "")
    return [f"rt_sigaction(SIGNAL, SIG_DFL)  # {count(len(names), 'signal')}: {some}"]


def _handler(op: Op) -> int | None:
    action = op.args[1] if len(op.args) > 1 else None
    if not isinstance(action, Data) or len(action.content) < 8 or action.pointers:
        return None
    return int.from_bytes(action.content[:8], "little")


def _shown(op: Op) -> Sequence[Arg]:
    """Arguments worth showing: no mode without O_CREAT, an action in words."""
    flags = op.args[2] if len(op.args) > 2 else None
    if op.call == "openat" and isinstance(flags, int) and not flags & 0o100:
        return op.args[:3]
    handler = _handler(op) if op.call == "rt_sigaction" else None
    if handler is not None:
        word = "SIG_IGN" if handler == SIG_IGN else f"handler {handler:#x}"
        return op.args[0], Data(b"", 1, (), word)
    return op.args


def _word(arg: Arg, rule: Word) -> str:
    if isinstance(arg, Slot):
        return f"${arg.name}"
    if isinstance(arg, Data):
        return arg.text or f"<{len(arg.content)} bytes>"
    return rule(arg)


def number(value: int) -> str:
    """Small ones in decimal, signed; others in hexadecimal."""
    value &= (1 << 64) - 1
    signed = value - (1 << 64) if value >> 63 else value
    return str(signed) if -4096 <= signed <= 1 << 20 else hex(value)


def address(value: int) -> str:
    """An address; 0 is NULL."""
    return hex(value) if value else "NULL"


def length(value: int) -> str:
    """A number of bytes."""
    return str(value) if value < 1 << 40 else hex(value)


def protection(value: int) -> str:
    """`r-x`."""
    return "".join(letter if value >> i & 1 else "-" for i, letter in enumerate("rwx"))


def directory(value: int) -> str:
    """A directory's descriptor."""
    return "AT_FDCWD" if value & (1 << 64) - 1 == AT_FDCWD else number(value)


def bits(names: Mapping[int, str]) -> Word:
    """Flags joined by `|`."""

    def word(value: int) -> str:
        known = [name for bit, name in names.items() if value & bit]
        rest = value & ~sum(bit for bit in names if value & bit)
        return "|".join([*known, *([hex(rest)] if rest else [])]) or "0"

    return word


def one_of(names: Mapping[int, str]) -> Word:
    """A value with a name."""
    return lambda value: names.get(value, number(value))


def _open_flags(value: int) -> str:
    access = ("O_RDONLY", "O_WRONLY", "O_RDWR", "3")[value & 3]
    rest = bits(OPEN_FLAGS)(value & ~3)
    return access if rest == "0" else f"{access}|{rest}"


def _socket_type(value: int) -> str:
    rest = bits(SOCKET_FLAGS)(value & ~0xF)
    kind = TYPES.get(value & 0xF, number(value & 0xF))
    return kind if rest == "0" else f"{kind}|{rest}"


def _signal(value: int) -> str:
    try:
        return signal.Signals(value).name
    except ValueError:
        return number(value)


def _limit(value: int) -> str:
    names = LIMITS.split()
    return names[value] if value < len(names) else number(value)


def _mode(value: int) -> str:
    return f"{value:04o}" if value < 1 << 16 else number(value)


RULES: Mapping[str, Sequence[Word]] = {
    "openat": (directory, number, _open_flags, _mode),
    "mknodat": (directory, number, _mode),
    "unlinkat": (directory,),
    "umask": (_mode,),
    "mmap": (address, length, protection, bits(MAP_FLAGS), number, length),
    "munmap": (address, length),
    "mprotect": (address, length, protection),
    "madvise": (address, length, one_of(ADVICE)),
    "mlock2": (address, length),
    "mremap": (address, length, length, bits(MREMAP_FLAGS), address),
    "shmat": (number, address),
    "prctl": (one_of(PRCTL), one_of(PR_SET_MM)),
    "fcntl": (number, one_of(FCNTL)),
    "dup3": (number, number, bits({0o2000000: "O_CLOEXEC"})),
    "pipe2": (number, bits(OPEN_FLAGS)),
    "eventfd2": (number, bits({1: "EFD_SEMAPHORE", 0o4000: "EFD_NONBLOCK"})),
    "close_range": (number, number),
    "lseek": (number, length, one_of(WHENCE)),
    "socket": (one_of(FAMILIES), _socket_type),
    "socketpair": (one_of(FAMILIES), _socket_type),
    "setsockopt": (number, one_of(LEVELS)),
    "epoll_ctl": (number, one_of(EPOLL)),
    "timerfd_create": (one_of(CLOCKS),),
    "timer_create": (one_of(CLOCKS),),
    "setitimer": (one_of(ITIMERS),),
    "rt_sigaction": (_signal,),
    "prlimit64": (number, _limit),
    "setrlimit": (_limit,),
    "set_robust_list": (address, length),
    "set_tid_address": (address,),
    "rseq": (address, length, number, hex),
}
"""How to print the arguments of a call, in their order; the rest are numbers."""

# SPDX-License-Identifier: Apache-2.0
"""Further texts of /proc/PID: limits, timers, cgroup, mountinfo.

Source: proc_pid_*(5), Documentation/filesystems/proc.rst (v6.18).
"""

import re
from dataclasses import dataclass

RLIM_INFINITY = (1 << 64) - 1
RLIMIT_NAMES = {
    "Max cpu time": 0, "Max file size": 1, "Max data size": 2, "Max stack size": 3,
    "Max core file size": 4, "Max resident set": 5, "Max processes": 6, "Max open files": 7,
    "Max locked memory": 8, "Max address space": 9, "Max file locks": 10,
    "Max pending signals": 11, "Max msgqueue size": 12, "Max nice priority": 13,
    "Max realtime priority": 14, "Max realtime timeout": 15,
}  # fmt: skip
_OCTAL = re.compile(r"\\([0-7]{3})")


def parse_limits(text: str) -> list[tuple[int, int]]:
    """/proc/PID/limits: (soft, hard) of the 16 limits, by their RLIMIT_ number."""
    found = [(RLIM_INFINITY, RLIM_INFINITY)] * len(RLIMIT_NAMES)
    for line in text.splitlines():
        name = line[:25].strip()
        if name in RLIMIT_NAMES:
            soft, hard = line[25:].split()[:2]
            found[RLIMIT_NAMES[name]] = (_limit(soft), _limit(hard))
    return found


def _limit(word: str) -> int:
    return RLIM_INFINITY if word == "unlimited" else int(word)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerInfo:
    """A POSIX timer in /proc/PID/timers."""

    timer_id: int
    signal: int
    value: int
    """sigev_value as the text has it, a pointer-sized number."""
    notify: str
    """`signal` or `none` (`thread` means SIGEV_THREAD)."""
    notify_tid: int
    """Thread of SIGEV_THREAD_ID as seen from here, else 0."""
    clock_id: int


def parse_timers(text: str) -> list[TimerInfo]:
    """/proc/PID/timers."""
    return [
        _timer(block) for block in re.split(r"^(?=ID: )", text, flags=re.MULTILINE) if block.strip()
    ]


def _timer(block: str) -> TimerInfo:
    fields = (line.partition(":") for line in block.splitlines())
    lines = {name: value.strip() for name, _, value in fields}
    number, _, value = lines["signal"].partition("/")
    notify, _, target = lines["notify"].partition("/")
    kind, _, target_id = target.partition(".")
    return TimerInfo(
        timer_id=int(lines["ID"]),
        signal=int(number),
        value=int(value, 16),
        notify=notify,
        notify_tid=int(target_id) if kind == "tid" else 0,
        clock_id=int(lines["ClockID"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupEntry:
    """A line of /proc/PID/cgroup. ``controllers`` is empty for version 2 (hierarchy 0)."""

    hierarchy: int
    controllers: tuple[str, ...]
    path: str


def parse_cgroup(text: str) -> list[CgroupEntry]:
    """/proc/PID/cgroup."""
    found = []
    for line in text.splitlines():
        number, names, path = line.split(":", 2)
        controllers = tuple(names.split(",")) if names else ()
        found.append(CgroupEntry(hierarchy=int(number), controllers=controllers, path=path))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of /proc/PID/mountinfo."""

    mount_id: int
    parent_id: int
    dev_major: int
    dev_minor: int
    root: str
    mount_point: str
    options: tuple[str, ...]
    shared: int
    """Peer group id, 0 when the mount is not shared."""
    master: int
    propagate_from: int
    unbindable: bool
    fs_type: str
    source: str
    super_options: tuple[str, ...]


def parse_mountinfo(text: str) -> list[Mount]:
    """/proc/PID/mountinfo."""
    return [_mount(line) for line in text.split("\n") if line]


def _mount(line: str) -> Mount:
    words = line.split(" ")
    dash = words.index("-", 6)
    tags = dict(tag.partition(":")[::2] for tag in words[6:dash])
    major, _, minor = words[2].partition(":")
    return Mount(
        mount_id=int(words[0]),
        parent_id=int(words[1]),
        dev_major=int(major),
        dev_minor=int(minor),
        root=unescape(words[3]),
        mount_point=unescape(words[4]),
        options=tuple(words[5].split(",")),
        shared=int(tags.get("shared", 0)),
        master=int(tags.get("master", 0)),
        propagate_from=int(tags.get("propagate_from", 0)),
        unbindable="unbindable" in tags,
        fs_type=unescape(words[dash + 1]),
        source=unescape(words[dash + 2]),
        super_options=tuple(words[dash + 3].split(",")),
    )


def unescape(text: str) -> str:
    """Undo the kernel's octal escapes (blank, tab, newline, backslash, #)."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)

# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a tree of tasks, in a form that is equal before and after a restore.

`describe(root)` gives a flat dict: `task 41: Umask` -> text. What cannot be equal is left out or
replaced by a number of order here, each with its reason; everything else must be the same.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from tests.functional import describe_sockets, describe_tun

CHANGING = {
    "Ngid": "a NUMA group, made by the scheduler",
    "FDSize": "what the table's array has grown to, not what is open",
    "VmPeak": "history",
    "VmHWM": "history",
    "VmRSS": "pages are had back when they are touched",
    "RssAnon": "as VmRSS",
    "RssFile": "as VmRSS",
    "RssShmem": "as VmRSS",
    "VmPTE": "page tables follow VmRSS",
    "VmSwap": "as VmRSS",
    "HugetlbPages": "as VmRSS",
    "SigQ": "counts all signals of the user",
    "Cpus_allowed_list": "told by Cpus_allowed",
    "Mems_allowed_list": "told by Mems_allowed",
    "voluntary_ctxt_switches": "history",
    "nonvoluntary_ctxt_switches": "history",
    "State": "a blocked task may be seen while it runs; stops are compared by `stopped`",
    "TracerPid": "compared by `stopped`",
    "VmExe": "counted by address, told by maps",
    "VmLib": "counted by address, told by maps",
    "VmData": "told by maps",
    "VmStk": "told by maps",
    "VmSize": "told by maps",
    "Speculation_Store_Bypass": "a bit of the task that prctl may not set back",
    "SpeculationIndirectBranch": "as above",
}
OF_ZOMBIES = {
    "SigBlk": "no signal reaches it any more",
    "SigIgn": "as above",
    "SigCgt": "as above",
    "SigPnd": "as above",
    "ShdPnd": "as above",
}
OF_ENDED = {
    "SigPnd": "of a main thread that has ended before others: nobody can read or take it",
    "Seccomp": "as above: it is under no filter",
    "Seccomp_filters": "as above",
}
FDINFO_CHANGING = {
    "ino": "inode numbers of pipes, sockets and memfds are new",
    "mnt_id": "told by the link",
    "it_value": "runs on",
    "eventfd-id": "a number of order in the kernel",
    "drm-": "not ours",
}
VMFLAGS_CHANGING = {
    "sd": "soft-dirty is set on every new area",
    "ac": "accounting is decided at mmap by overcommit mode and protection",
    "gu": "there may be guard regions: it stays when they are gone",
    "mr": "mayread, told by the file",
    "mw": "maywrite, told by the file",
    "me": "mayexec, told by the file",
}
ANON_LINK = re.compile(r"\b(pipe|socket):\[(\d+)\]")
TIME = re.compile(r"(time):\[(\d+)\]")
NAMELESS = re.compile(r"/#\d+ \(deleted\)$")
"""An O_TMPFILE is called by the number of its inode, which is new."""
O_LARGEFILE = 0o100000
MAP = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$")


def tree(root: int) -> list[int]:
    """Pids of a tree, parents first."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop(0)
        found.append(pid)
        with suppress(OSError):
            for thread in sorted(Path(f"/proc/{pid}/task").glob("*/children")):
                with suppress(OSError):
                    todo += sorted(int(word) for word in thread.read_text().split())
    return found


def describe(root: int) -> dict[str, str]:
    """All that is said of every task of the tree."""
    names: dict[str, str] = {}
    said: dict[str, str] = {}
    pids = tree(root)
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            for name, text in _task(pid, names).items():
                said[f"task {pid}: {name}"] = text
    said["tree"] = " ".join(str(pid) for pid in pids)
    return said


def differences(before: dict[str, str], after: dict[str, str]) -> str:
    """What is not equal, for people; empty when all is."""
    return "\n".join(
        f"{name}:\n  was {before.get(name)}\n  is  {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def stopped(root: int) -> dict[int, str]:
    """Threads in a stop (T of a signal, t of a tracer), and threads with a tracer."""
    held = {}
    for pid in tree(root):
        for tid in _threads(pid):
            text = _read(Path(f"/proc/{pid}/task/{tid}/status"))
            state = re.search(r"^State:\s+(.)", text, re.M)
            if state and state[1] in "Tt":
                held[tid] = state[1]
            if "\nTracerPid:\t" in text and "\nTracerPid:\t0\n" not in text:
                held[tid] = "traced"
    return held


def _task(pid: int, names: dict[str, str]) -> dict[str, str]:
    here = Path(f"/proc/{pid}")
    if ")" not in _read(here / "stat"):  # it has ended meanwhile
        return {}
    said = _stat(here)
    said |= _status(here)
    if _zombie(here):
        here = _face(here)
        if _zombie(here):
            return {name: text for name, text in said.items() if name not in OF_ZOMBIES}
        said = {name: text for name, text in said.items() if name not in OF_ENDED}
    for name in ("limits", "oom_score_adj", "loginuid", "personality", "coredump_filter",
                 "timerslack_ns", "cgroup", "setgroups", "uid_map"):  # fmt: skip
        said[name] = _read(here / name)
    for name in ("cmdline", "environ", "auxv"):
        said[name] = _read(here / name)
    for name in ("cwd", "root", "exe"):
        said[name] = _link(here / name)
    for name in sorted(os.listdir(here / "ns")):
        link = _link(here / "ns" / name)  # a restored tree is in a time namespace of its own
        said[f"ns {name}"] = _order(TIME.fullmatch(link), names) if TIME.match(link) else link
    said["autogroup"] = _read(here / "autogroup").partition(" ")[2]
    for line in _read(here / "numa_maps").splitlines():
        start, policy, *_ = line.split()
        if policy != "default":
            said[f"policy {start}"] = policy
    said["timers"] = "ID: ".join(sorted(_read(here / "timers").split("ID: ")))
    said |= _maps(here, names)
    said |= _descriptors(here, names)
    for tid in _threads(pid):
        if _zombie(here / "task" / str(tid)):
            continue
        for name, text in _thread(here, tid).items():
            said[f"thread {tid}: {name}"] = text
    return said


def _threads(pid: int) -> list[int]:
    with suppress(OSError):
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    return []


def _face(here: Path) -> Path:
    """By which thread a task is looked at: the main one, or the first that lives."""
    alive = (Path("/proc") / str(tid) for tid in _threads(int(here.name)))
    return next((one for one in alive if not _zombie(one)), here)


def _zombie(here: Path) -> bool:
    return _read(here / "stat").rpartition(")")[2].split()[:1] == ["Z"]


def _stat(here: Path) -> dict[str, str]:
    text = _read(here / "stat")
    words = text.rpartition(")")[2].split()
    if len(words) < 50:
        return {}
    fields = {"ppid": 1, "pgrp": 2, "session": 3, "tty": 4, "exit signal": 35}
    if words[0] == "Z":  # of a stopped task it says whether its parent has been told
        fields["exit code"] = 49
    return {f"stat {name}": words[at] for name, at in fields.items()}


def _status(here: Path) -> dict[str, str]:
    said = {}
    for line in _read(here / "status").splitlines():
        name, _, value = line.partition(":")
        if name not in CHANGING and not name.endswith("ctxt_switches"):
            said[name] = " ".join(value.split())
    return said


def _thread(here: Path, tid: int) -> dict[str, str]:
    said = _status(here / "task" / str(tid))
    said["comm"] = _read(here / "task" / str(tid) / "comm")
    with suppress(OSError):
        said["policy"] = str(os.sched_getscheduler(tid))
        said["priority"] = str(os.sched_getparam(tid).sched_priority)
        said["nice"] = str(os.getpriority(os.PRIO_PROCESS, tid))
        said["affinity"] = str(sorted(os.sched_getaffinity(tid)))
    said.pop("VmLck", None)
    return said


def _maps(here: Path, names: dict[str, str]) -> dict[str, str]:
    """Areas with their flags; neighbours that the kernel may merge are one."""
    rows: list[list[str | int]] = []
    said: dict[str, str] = {}
    for line in _read(here / "smaps").splitlines():
        found = MAP.match(line)
        if found:
            start, end, perms, offset, device, inode, path = found.groups()
            named = ANON_LINK.sub(lambda m: _order(m, names), path)
            if named != path:
                inode = "anonymous"
            if path.startswith(("/dev/zero (deleted)", "/memfd:", "/SYSV", "anon_inode:")) or (
                "(deleted)" in path and inode != "0"
            ):
                key = f"{device} {inode}"
                names.setdefault(key, f"#{len(names)}")
                inode, device = names[key], "anonymous"
            rows.append([int(start, 16), int(end, 16), perms, offset, device, inode, named, ""])
        elif line.startswith("VmFlags:"):
            kept = [word for word in line.split()[1:] if word not in VMFLAGS_CHANGING]
            rows[-1][7] = " ".join(kept)
    for row in _merged(rows):
        start, end, *rest = row
        said[f"area {start:x}-{end:x}"] = " ".join(str(word) for word in rest)
    return said


def _merged(rows: list[list[str | int]]) -> list[list[str | int]]:
    out: list[list[str | int]] = []
    for row in rows:
        last = out[-1] if out else None
        if last is not None and last[1] == row[0] and _goes_on(last, row):
            last[1] = row[1]
        else:
            out.append(list(row))
    return out


def _goes_on(last: list[str | int], row: list[str | int]) -> bool:
    """Whether two neighbours are alike: what tells them apart was their history."""
    if [*last[2:3], *last[4:]] != [*row[2:3], *row[4:]]:
        return False
    if row[5] == "0":
        return row[6] in ("", "[heap]") and "p" in str(row[2])
    return int(str(last[3]), 16) + int(last[1]) - int(last[0]) == int(str(row[3]), 16)


def _descriptors(here: Path, names: dict[str, str]) -> dict[str, str]:
    said = {}
    for number in sorted(os.listdir(here / "fd"), key=int):
        link = _link(here / "fd" / number)
        link = NAMELESS.sub("/# (deleted)", link)
        said[f"fd {number}"] = ANON_LINK.sub(lambda m: _order(m, names), link)
        lines = []
        for line in _read(here / "fdinfo" / number).splitlines():
            name, _, value = line.partition(":")
            if name in FDINFO_CHANGING:
                continue
            if name == "flags":  # the kernel adds it to each open of a 64-bit program
                value = f"{int(value, 8) & ~O_LARGEFILE:o}"
            if name == "tfd":  # its ino is that of the watched file
                value = re.sub(r"\s+(ino|sdev|pos):\S+", "", value)
            if name.startswith("lock"):
                value = re.sub(r"^\s*\d+:", "", value)
                value = re.sub(r"(\b[0-9a-f]+:[0-9a-f]+):\d+", r"\1", value)  # a ghost's is new
            lines.append(f"{name}: {' '.join(value.split())}")
        if link.startswith("socket:"):
            for name, text in describe_sockets.describe(int(here.name), int(number)).items():
                said[f"fd {number} socket {name}"] = text
        interface = next((line[5:] for line in lines if line.startswith("iff: ")), "")
        if interface:  # each read leaves its size as the position, and nothing can set that
            lines = [line for line in lines if not line.startswith("pos:")]
            for what, text in describe_tun.describe(int(here.name), int(number), interface).items():
                said[f"fd {number} {what}"] = text
        said[f"fd {number} info"] = "\n".join(sorted(lines))
    return said


def _order(match: re.Match[str], names: dict[str, str]) -> str:
    key = match.group(0)
    names.setdefault(key, f"{match.group(1)} #{len(names)}")
    return names[key]


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        return f"({error.strerror})"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        return f"({error.strerror})"

# SPDX-License-Identifier: Apache-2.0
"""How much more memory, or how many more tasks, there may be: of the machine and of cgroups.

Facts: version 1 has limits in `memory.limit_in_bytes` and `pids.max`, version 2 in `memory.max`
and `pids.max`; those of the groups above count as well. Page cache that is no shared memory makes
room when it has to.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

UNLIMITED = 1 << 62
V1_FILES = "memory.limit_in_bytes", "memory.usage_in_bytes", "cache"
V2_FILES = "memory.max", "memory.current", "file"
MOUNT = Path("/sys/fs/cgroup")


def memory_room(pid: int | str = "self", given: Sequence[Path] = ()) -> int:
    """Bytes that a task may have more, without paging or a memory cgroup's limit.

    ``given`` are cgroup directories of its, for where its own paths lead nowhere from here.
    """
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    rooms = [int(found[1]) << 10] if found else []
    rooms += [_memory_below(path) for path in _places(pid, "memory", given)]
    return min(rooms, default=UNLIMITED)


def task_room(pid: int, given: Sequence[Path] = ()) -> int:
    """How many more tasks its cgroups allow."""
    return min((_tasks_below(path) for path in _places(pid, "pids", given)), default=UNLIMITED)


def dies_together(pid: int, given: Sequence[Path] = ()) -> bool:
    """Whether the kernel kills all of a cgroup of its when it runs out of memory."""
    return any(_word(path / "memory.oom.group") == "1" for path in _places(pid, "memory", given))


def limit_text(pid: int, given: Sequence[Path] = ()) -> str:
    """The tightest limit of a task's memory, for the user."""
    found = [(_memory_below(place), place) for place in _places(pid, "memory", given)]
    left, place = min(found, default=(UNLIMITED, MOUNT))
    if left == UNLIMITED:
        return "the machine has run out of memory, or somebody has killed it"
    names = [name for name in (V2_FILES[0], V1_FILES[0]) if (place / name).exists()]
    return f"{place / names[0]} is {_word(place / names[0])}" if names else f"limit of {place}"


def memory_places(pid: int) -> list[Path]:
    """Where limits of a task's memory are; when it has ended, its cgroup is not told any more."""
    return list(_places(pid, "memory", ()))


def _places(pid: int | str, controller: str, given: Sequence[Path]) -> Iterator[Path]:
    """Directories of a task's cgroup and of those above it."""
    text = ""
    with suppress(OSError):  # it is gone
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    yield from _places_by(text, controller)
    for path in given:
        own = Path(str(path).replace("/freezer/", f"/{controller}/"))
        yield from (own, *own.parents)


@lru_cache(maxsize=16)
def _places_by(text: str, controller: str) -> tuple[Path, ...]:
    """By what /proc/PID/cgroup tells, which is the same for most tasks of a tree."""
    found: list[Path] = []
    for line in text.splitlines():
        _, controllers, name = line.split(":", 2)
        roots: tuple[Path, ...] = ()
        if not controllers:
            roots = (MOUNT, MOUNT / "unified")
        elif controller in controllers.split(","):
            roots = (MOUNT / controller,)
        for root in roots:
            place = Path(os.path.normpath(root / name.lstrip("/")))
            found += [p for p in (place, *place.parents) if p.is_relative_to(root)]
    return tuple(found)


def _memory_below(place: Path) -> int:
    """Bytes left below a cgroup's limit."""
    for limit, usage, cache in (V2_FILES, V1_FILES):
        try:
            most = (place / limit).read_text(encoding="ascii").strip()
            used = int((place / usage).read_text(encoding="ascii"))
            stat = (place / "memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        if most == "max":
            return UNLIMITED
        kept = {key: int(value) for key, _, value in (li.partition(" ") for li in stat.split("\n"))
                if key in (cache, "shmem")}  # fmt: skip
        return max(int(most) - used + kept.get(cache, 0) - kept.get("shmem", 0), 0)
    return UNLIMITED


def _tasks_below(place: Path) -> int:
    most, used = _word(place / "pids.max"), _word(place / "pids.current")
    if not (most.isdigit() and used.isdigit()):
        return UNLIMITED
    return max(int(most) - int(used), 0)


def _word(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii").strip()
    return ""

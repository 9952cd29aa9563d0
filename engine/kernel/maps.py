# SPDX-License-Identifier: Apache-2.0
"""Mappings: the texts of /proc/PID/maps and smaps, in and out of them nothing else.

Source: proc_pid_maps(5), proc_pid_smaps(5); fs/proc/task_mmu.c, show_map_vma (v6.18).
"""

import re
from functools import lru_cache
from typing import NamedTuple

DELETED = " (deleted)"
KNOWN = 1 << 13
"""Lines of smaps that are remembered."""
_MAPS_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)
_SMAPS_SIZE = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)


class Vma(NamedTuple):
    """A mapping. The fields from ``vm_flags`` on come from smaps and are empty from maps.

    A tuple, because there may be thousands, and they are made while tasks stand still.
    """

    start: int
    end: int
    prot: str
    """`rwxp` or `rwxs`, a dash for what is missing."""
    offset: int
    dev_major: int
    dev_minor: int
    inode: int
    name: str
    """Path, `[heap]`, `[anon:...]` or empty; a removed file's ends in ` (deleted)`."""
    vm_flags: frozenset[str] = frozenset()
    details: str = ""
    """Its lines of smaps; sizes are read from them only when asked for."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def shared(self) -> bool:
        """MAP_SHARED."""
        return self.prot[3] == "s"

    @property
    def deleted(self) -> bool:
        """The file has no name any more."""
        return self.inode != 0 and self.name.endswith(DELETED)

    @property
    def sizes_kb(self) -> dict[str, int]:
        """All lines in kB by name: Rss, Anonymous, Swap, ..."""
        return {name: int(size) for name, size in _SMAPS_SIZE.findall(self.details)}

    @property
    def anonymous_kb(self) -> int:
        """Private pages that are no file's."""
        return self.sizes_kb.get("Anonymous", 0)

    @property
    def swap_kb(self) -> int:
        """Swapped out."""
        return self.sizes_kb.get("Swap", 0)

    @property
    def rss_kb(self) -> int:
        """Resident."""
        return self.sizes_kb.get("Rss", 0)


def parse_maps(text: str) -> list[Vma]:
    """/proc/PID/maps."""
    return [_vma(match) for match in map(_MAPS_LINE.fullmatch, text.split("\n")) if match]


def area_with(maps: bytes, address: int) -> tuple[int, int] | None:
    """The range of /proc/PID/maps that an address is in; no other line is looked at closely."""
    lines = maps.split(b"\n")
    low, high = 0, len(lines) - 1  # after the last newline there is nothing
    while low < high:
        middle = (low + high) // 2
        start, end = (int(word, 16) for word in lines[middle].split(b" ", 1)[0].split(b"-"))
        if start <= address < end:
            return start, end
        low, high = (low, middle) if address < start else (middle + 1, high)
    return None


def parse_smaps(text: str) -> list[Vma]:
    """/proc/PID/smaps: maps with the lines that follow each mapping, VmFlags last."""
    pieces = text.split("\nVmFlags:")
    found = []
    for i, piece in enumerate(pieces[:-1]):
        block = piece.partition("\n")[2] if i else piece
        head, _, details = block.partition("\n")
        vma = _known(head, pieces[i + 1].partition("\n")[0])
        if vma is not None:
            found.append(Vma(*vma[:-1], details))
    return found


@lru_cache(maxsize=KNOWN)
def _known(line: str, flags: str) -> Vma | None:
    """A mapping without its details: most are looked at twice, before the stop and under it."""
    match = _MAPS_LINE.fullmatch(line)
    return _vma(match, frozenset(flags.split())) if match else None


def _vma(match: "re.Match[str]", vm_flags: frozenset[str] = frozenset()) -> Vma:
    start, end, prot, offset, major, minor, inode, name = match.groups()
    return Vma(
        int(start, 16),
        int(end, 16),
        prot,
        int(offset, 16),
        int(major, 16),
        int(minor, 16),
        int(inode),
        name.replace("\\012", "\n"),
        vm_flags,
    )

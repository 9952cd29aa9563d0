# SPDX-License-Identifier: Apache-2.0
"""The vDSO of a task: recognised by its symbols, never by page frame numbers.

Facts (measured on 6.18, and read in arch/x86/entry/vdso/vma.c):
- The kernel maps [vvar] (since 6.13 also [vvar_vclock]) and [vdso] side by side; the code
  finds its data relative to itself, so they must keep their distances. Each can be moved by
  mremap, any order, any place, without privilege; the names in maps move along.
- Contents of [vvar] cannot be read from outside, and need not be: the kernel provides them.
- A private executable mapping without a name whose bytes are an ELF shared object with
  `__vdso_*` symbols is a vDSO left by an earlier restore: ordinary memory, saved as such.
- On another kernel the old code is kept at its address and each of its functions becomes a
  jump to the function of that name in the running kernel's vDSO, or the system call that the
  function stands for: arguments and result are the same (vdso(7); getrandom's two more
  arguments, of its state, mean nothing to the call).
- A task may have unmapped all of it (it comes back without), or only the code: then what is
  left cannot be told from a block that serves, and is refused.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.errors import BadImage, Refused
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.kind import Limit, refuse
from torpor.engine.memory.areas import Area, Backing

PT_DYNAMIC, PT_LOAD = 2, 1
DT_HASH, DT_STRTAB, DT_SYMTAB = 4, 5, 6
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SYM = struct.Struct("<IBBHQQ")
JUMP_BYTES = 12
SYSTEM_CALLS = {
    "__vdso_gettimeofday": "gettimeofday",
    "__vdso_time": "time",
    "__vdso_clock_gettime": "clock_gettime",
    "__vdso_clock_getres": "clock_getres",
    "__vdso_getcpu": "getcpu",
    "__vdso_getrandom": "getrandom",
}

LIMITS = (
    Limit(
        case="vdso-part",
        what="a vDSO of which only the code was unmapped",
        remedy="leave it mapped, or unmap its data areas ([vvar]) as well",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The special areas of an address space as one block."""

    start: int
    end: int
    parts: tuple[tuple[str, int, int], ...]
    """(backing's word, start, end), by address."""

    @property
    def code(self) -> tuple[int, int]:
        """Range of the vDSO's code."""
        for word, start, end in self.parts:
            if word == Backing.VDSO.value:
                return start, end
        return 0, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Move the running kernel's block (or a part of it)."""

    source: int
    size_bytes: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VdsoPlan:
    """``moves`` bring the kernel's block to its place; ``patches`` are (address, bytes)."""

    moves: tuple[Move, ...]
    keep_old_code: bool
    patches: tuple[tuple[int, bytes], ...] = ()


def group(areas: Sequence[Area]) -> Group | None:
    """The block of special areas, None for a task that unmapped its vDSO."""
    parts = sorted(
        (a.start, a.end, a.backing.value)
        for a in areas
        if a.backing in (Backing.VDSO, Backing.VVAR)
    )
    if not parts:
        return None
    return Group(
        start=parts[0][0],
        end=parts[-1][1],
        parts=tuple((word, start, end) for start, end, word in parts),
    )


def check(areas: Sequence[Area], subject: str) -> Refused | None:
    """The refusal of a task whose special areas are not a whole block."""
    block = group(areas)
    if block is not None and block.code == (0, 0):
        return refuse(LIMITS[0], subject)
    return None


def symbols(image: bytes) -> dict[str, int]:
    """Offsets of the functions of a vDSO image; empty when it is none."""
    if image[:5] != b"\x7fELF\x02":
        return {}
    try:
        dynamic = _dynamic(image)
        return {} if dynamic is None else _dynamic_symbols(image, dynamic)
    except (struct.error, ValueError, LookupError, OverflowError):
        return {}


def _dynamic(image: bytes) -> int | None:
    head = EHDR.unpack_from(image)
    offset, size, count = head[5], head[9], head[10]
    for i in range(count):
        kind, _, _, vaddr, *_ = PHDR.unpack_from(image, offset + i * size)
        if kind == PT_DYNAMIC:
            return int(vaddr)
    return None


def _dynamic_symbols(image: bytes, dynamic: int) -> dict[str, int]:
    tags: dict[int, int] = {}
    for at in range(dynamic, len(image) - 15, 16):
        tag, value = struct.unpack_from("<QQ", image, at)
        if tag == 0:
            break
        tags[tag] = value
    if DT_HASH in tags:
        _, count = struct.unpack_from("<II", image, tags[DT_HASH])
    else:  # linked with --hash-style=gnu: names follow the symbols
        count = (tags[DT_STRTAB] - tags[DT_SYMTAB]) // SYM.size
    found = {}
    for i in range(min(count, len(image) // SYM.size)):
        name_at, _, _, section, value, _ = SYM.unpack_from(image, tags[DT_SYMTAB] + i * SYM.size)
        start = tags[DT_STRTAB] + name_at
        name = image[start : image.index(b"\0", start)].decode("ascii")
        if name.startswith("__vdso_") and section and 0 < value <= len(image) - JUMP_BYTES:
            found[name] = value
    return found


def is_vdso(image: bytes) -> bool:
    """Whether bytes are those of a vDSO."""
    return bool(symbols(image))


def plan(
    old: Group | None, old_code: bytes | None, current: Group, current_code: bytes, spare: int
) -> VdsoPlan:
    """How the running kernel's vDSO serves a task that knew another (or the same) one.

    ``spare`` is a free place for the kernel's block when it cannot be at the old address.

    Raises:
        BadImage: the old code is not there, is none, or has a function that nothing can stand for.
    """
    if old is None:
        return VdsoPlan(moves=(), keep_old_code=False)
    if (old_code is None or old_code == current_code) and _shape(old) == _shape(current):
        moves = tuple(
            Move(source=start, size_bytes=end - start, target=old.start + start - current.start)
            for _, start, end in current.parts
        )
        return VdsoPlan(moves=moves, keep_old_code=False)
    if old_code is None:
        raise BadImage(
            "the image does not hold the code of its vDSO, and this kernel's is of another shape",
            subject="vdso",
            remedy="restore on the kernel that the checkpoint was taken on",
        )
    functions = symbols(old_code)
    if not functions:
        raise BadImage("what the image has for its vDSO is none", subject="vdso")
    moves = tuple(
        Move(source=start, size_bytes=end - start, target=spare + start - current.start)
        for _, start, end in current.parts
    )
    target = spare + current.code[0] - current.start
    patches = _patches(old.code[0], functions, target, symbols(current_code))
    return VdsoPlan(moves=moves, keep_old_code=True, patches=patches)


def _shape(block: Group) -> tuple[int, int, int]:
    """Length, and where the code lies; CRIU's images join the data areas to one."""
    start, end = block.code
    return block.end - block.start, start - block.start, end - block.start


def _patches(
    old_base: int, old: Mapping[str, int], new_base: int, new: Mapping[str, int]
) -> tuple[tuple[int, bytes], ...]:
    found = []
    for name, offset in sorted(old.items()):
        if name in new:
            code = b"\x48\xb8" + struct.pack("<Q", new_base + new[name]) + b"\xff\xe0"
        elif name in SYSTEM_CALLS:
            number = syscall_number(SYSTEM_CALLS[name])
            code = b"\xb8" + struct.pack("<I", number) + b"\x0f\x05\xc3"
        else:
            raise BadImage(
                f"this kernel's vDSO lacks {name}",
                subject="vdso",
                remedy="restore on a kernel that has it",
            )
        found.append((old_base + offset, code))
    return tuple(found)

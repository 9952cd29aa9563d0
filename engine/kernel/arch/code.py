# SPDX-License-Identifier: Apache-2.0
"""Finding instructions in a task's own text: `syscall` with a harmless way to `ret`.

What stands between the two may change registers (the task's context comes back from a
signal frame afterwards), but must not write memory, branch, or lose track of the stack.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

SYSCALL = b"\x0f\x05"
POP_RAX_RET = b"\x58\xc3"
LONGEST = 96
_RSP, _RBP = 4, 5


@dataclass(frozen=True, slots=True)
class Gadget:
    """`syscall; ...; ret` at ``offset``: the `ret` takes the word at base register + distance."""

    offset: int
    base: str
    """`rsp` or `rbp`: the register whose value at the call decides where the `ret` looks."""
    distance: int
    code: bytes


def find_gadgets(code: bytes) -> Iterator[Gadget]:
    """Every usable gadget of a piece of x86-64 text."""
    for match in re.finditer(re.escape(SYSCALL), code, re.DOTALL):
        start = match.start()
        found = _follow(code, start + len(SYSCALL))
        if found:
            base, distance, end = found
            yield Gadget(start, base, distance, code[start:end])


class _Walk:
    """Where rsp is, as a base register's value at the call plus a distance."""

    __slots__ = ("base", "distance", "rbp_known")

    def __init__(self) -> None:
        self.base, self.distance, self.rbp_known = "rsp", 0, True


def _follow(code: bytes, at: int) -> tuple[str, int, int] | None:
    walk = _Walk()
    end = min(at + LONGEST, len(code))
    while at < end:
        if code[at] == 0xC3:
            return walk.base, walk.distance, at + 1
        size = _stack_instruction(code, at, walk) or _plain_instruction(code, at, walk)
        if not size:
            return None
        at += size
    return None


def _stack_instruction(code: bytes, at: int, walk: _Walk) -> int:
    """Length of a pop, leave, add to rsp or lea from rbp; 0 for anything else."""
    here = code[at : at + 8]
    if here[0] == 0xC9 and walk.rbp_known:  # leave
        walk.base, walk.distance, walk.rbp_known = "rbp", 8, False
        return 1
    wide = 1 if here[0] == 0x41 else 0
    if len(here) > wide and here[wide] & 0xF8 == 0x58:  # pop
        register = here[wide] & 7
        if not wide and register == _RSP:
            return 0
        if not wide and register == _RBP:
            walk.rbp_known = False
        walk.distance += 8
        return 1 + wide
    if here[:3] == b"\x48\x83\xc4":  # add $imm8,%rsp
        walk.distance += int.from_bytes(here[3:4], "little", signed=True)
        return 4
    if here[:3] == b"\x48\x81\xc4":  # add $imm32,%rsp
        walk.distance += int.from_bytes(here[3:7], "little", signed=True)
        return 7
    if here[:3] == b"\x48\x8d\x65" and walk.rbp_known:  # lea disp8(%rbp),%rsp
        walk.base = "rbp"
        walk.distance = int.from_bytes(here[3:4], "little", signed=True)
        return 4
    return 0


def _plain_instruction(code: bytes, at: int, walk: _Walk) -> int:
    """Length of a register-only xor or mov, or of a nop; 0 for anything else."""
    here = code[at : at + 4]
    if here[0] == 0x90:
        return 1
    prefix = 1 if 0x40 <= here[0] <= 0x4F else 0
    if len(here) < prefix + 2:
        return 0
    opcode, modrm = here[prefix], here[prefix + 1]
    if opcode not in (0x31, 0x89) or modrm >> 6 != 3:  # xor, mov between registers
        return 0
    target = (modrm & 7) + (8 if prefix and here[0] & 1 else 0)
    if target == _RSP:
        return 0
    if target == _RBP:
        walk.rbp_known = False
    return prefix + 2

# SPDX-License-Identifier: Apache-2.0
"""Operations to the bytes that native/executor runs, and the way back for messages.

Layout in the task, from the base address on: header, slots, operations, data. The format is
`native/include/torpor/program.h`; `test_encode.py` compares the sizes with the C side.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torpor.engine.errors import Bug, KernelError
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.program.ops import Data, Expect, Op, Program, Slot

OP = struct.Struct("<II6QQ")
HEADER = struct.Struct("<QQQqq")
NO_ARGS = (0,) * 6
NOT_RUN = -2
MASK64 = (1 << 64) - 1
PSEUDO = {"@load32": 0xF0000001, "@store64": 0xF0000002}
NO_REMEDY = "see the operation in `torpor plan`; report it with the image directory if it is wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Bytes for the task's memory at ``base``; the header is at their start."""

    program: Program
    base: int
    content: bytes
    slots: dict[str, int]
    """Index of each."""

    def failure(self, index: int, result: int, subject: str) -> KernelError:
        """The error for an operation that did not give what it had to."""
        op = self.program.ops[index]
        where = ", ".join(part for part in (subject, op.subject) if part)
        if -4096 < result < 0:
            return KernelError(
                f"{op.describe().split('  #')[0]} failed",
                errno=-result,
                subject=where,
                remedy=op.remedy or NO_REMEDY,
            )
        return KernelError(
            f"{op.describe().split('  #')[0]} gave {result} instead of {op.want}",
            errno=0,
            subject=where,
            cause=op.note or "unexpected result",
            remedy=op.remedy or NO_REMEDY,
        )


class _Layout:
    """Places data and slots; addresses are known once the counts are."""

    def __init__(self, program: Program, base: int, earlier: Sequence[str]) -> None:
        self.slots = _slots_of(program, earlier)
        self.slots_address = base + HEADER.size
        self.ops_address = (self.slots_address + 8 * len(self.slots) + 63) & ~63
        self.next = self.ops_address + OP.size * len(program.ops)
        self.addresses: dict[int, int] = {}
        self.placed: list[tuple[int, Data]] = []

    def address(self, data: Data) -> int:
        known = self.addresses.get(id(data))
        if known is not None:
            return known
        for _, target in data.pointers:
            self.address(target)
        address = (self.next + data.align - 1) & -data.align
        self.next = address + len(data.content)
        self.addresses[id(data)] = address
        self.placed.append((address, data))
        return address


def encode(program: Program, base: int, earlier: Sequence[str] = ()) -> Encoded:
    """The program as it must lie at ``base`` (64-byte aligned) of the task.

    ``earlier`` names slots which a piece of the same program before this one has set.
    """
    layout = _Layout(program, base, earlier)
    ops = b"".join([_encode_op(op, layout) for op in program.ops])
    content = bytearray(layout.next - base)
    HEADER.pack_into(
        content, 0, layout.ops_address, len(program.ops), layout.slots_address, NOT_RUN, 0
    )
    start = layout.ops_address - base
    content[start : start + len(ops)] = ops
    for address, data in layout.placed:
        content[address - base : address - base + len(data.content)] = data.content
        for offset, target in data.pointers:
            struct.pack_into("<Q", content, address - base + offset, layout.addresses[id(target)])
    return Encoded(program=program, base=base, content=bytes(content), slots=layout.slots)


def encoded_size(program: Program) -> int:
    """Bytes that the program takes, at any base."""
    return len(encode(program, 0).content)


def outcome(header: bytes) -> tuple[int, int]:
    """(index of the failed operation or -1, its result) from the header's bytes."""
    *_, index, result = HEADER.unpack(header[: HEADER.size])
    if index == NOT_RUN:
        raise Bug("a program did not start", subject="executor")
    return index, result


def _slots_of(program: Program, earlier: Sequence[str]) -> dict[str, int]:
    """Index of each slot."""
    names = dict.fromkeys(earlier)
    for op in program.ops:
        if op.yields is not None:
            names.setdefault(op.yields.name)
    return {name: i for i, name in enumerate(names)}


def _encode_op(op: Op, layout: _Layout) -> bytes:
    flags = op.expect << 8
    args: list[int] = []
    for i, arg in enumerate(op.args):
        if type(arg) is int:  # nearly all of them
            args.append(arg & MASK64)
        elif type(arg) is Data:
            args.append(layout.address(arg))
        elif isinstance(arg, Slot):
            if arg.name not in layout.slots:
                raise Bug(f"slot {arg.name} is used before it is set", subject=op.describe())
            flags |= 1 << i
            args.append(layout.slots[arg.name])
        else:
            assert isinstance(arg, int)  # of an enumeration
            args.append(arg & MASK64)
    if op.yields is not None:
        flags |= (layout.slots[op.yields.name] + 1) << 16
    number = _number(op.call)
    if number == PSEUDO["@load32"] and len(args) > 1:
        args = [args[0] + args[1]]
    return OP.pack(number, flags, *args, *NO_ARGS[len(args) :], op.want & MASK64)


@cache
def _number(call: str) -> int:
    return PSEUDO[call] if call in PSEUDO else syscall_number(call)


__all__ = ["Encoded", "Expect", "encode", "encoded_size", "outcome"]

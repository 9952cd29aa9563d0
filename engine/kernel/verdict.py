# SPDX-License-Identifier: Apache-2.0
"""What a seccomp filter will say to a system call, found out without making it.

Facts (kernel/seccomp.c and net/core/filter.c; v6.18):
- A filter is a classic BPF program over struct seccomp_data (number, architecture, instruction
  pointer, six arguments; 64 bytes), read in words of 32 bits at multiples of four. It knows
  nothing else, and its jumps lead forward only.
- All filters of a thread are asked; the answer that comes first of kill process, kill thread,
  trap, errno, notify, trace, log, allow counts. So a call is let through when each of them lets it.
- An unknown action kills. RET_TRACE without a tracer that wants it fails the call (ENOSYS).
- Shifts by 32 and more give 0 (the interpreter masks the count, but the check refuses constant
  ones; of a shift by a variable we know nothing). A division by zero ends the program with 0: kill.

An argument that is not known (an address of room that is found later) is `ANY`: then a jump that
depends on it goes both ways, and the answer is the worst of all that can be reached.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

ANY = None
Word = int | None
"""Of 32 bits; None may be any."""
ARCHITECTURE = 0xC000003E
"""AUDIT_ARCH_X86_64"""
DATA_BYTES, ARGUMENTS_AT = 64, 16
MASK = 0xFFFFFFFF
INSTRUCTION = struct.Struct("<HBBI")
MOST_STEPS = 50_000
"""A program has 4096 instructions; with jumps both ways it may take more."""
ACTION = 0xFFFF0000
LD_ABS, LD_LEN, LD_IMM, LD_MEM = 0x20, 0x80, 0x00, 0x60
LDX_LEN, LDX_IMM, LDX_MEM = 0x81, 0x01, 0x61
ST, STX, TAX, TXA, RET_K, RET_A, JA = 0x02, 0x03, 0x07, 0x87, 0x06, 0x16, 0x05
ALU, JMP, CLASS, BY_X, OPERATION = 0x04, 0x05, 0x07, 0x08, 0xF0
NEG = 0x80


UNKNOWN = (ANY,) * 6


class Verdict(IntEnum):
    """The better one is the smaller one."""

    ALLOWED = 0
    FAILS = 1
    """The call fails with an errno; the task goes on."""
    HARMS = 2
    """The task is killed, gets a signal, or waits for somebody."""


VERDICTS = {
    0x7FFF0000: Verdict.ALLOWED,
    0x7FFC0000: Verdict.ALLOWED,  # it is logged
    0x00050000: Verdict.FAILS,  # errno
    0x7FF00000: Verdict.FAILS,  # trace, by nobody
}


@dataclass(frozen=True, slots=True)
class AskedCall:
    """A call by its number, with up to six arguments; those not given are 0."""

    number: int
    arguments: tuple[int | None, ...] = ()

    def words(self) -> tuple[Word, ...]:
        """struct seccomp_data. Where the call comes from is never known."""
        found: list[Word] = [self.number & MASK, ARCHITECTURE, ANY, ANY]
        for one in (*self.arguments, *(0,) * 6)[:6]:
            found += (ANY, ANY) if one is None else (one & MASK, one >> 32 & MASK)
        return tuple(found)


def of_filters(programs: Sequence[bytes], call: AskedCall) -> Verdict:
    """What all filters of a thread say together."""
    return max((of_program(one, call) for one in programs), default=Verdict.ALLOWED)


@lru_cache(maxsize=4096)
def of_program(program: bytes, call: AskedCall) -> Verdict:
    """What one filter says, at worst. Most say the same whatever the arguments are."""
    if call.arguments != UNKNOWN:
        of_any = of_program(program, AskedCall(call.number, UNKNOWN))
        if of_any is Verdict.ALLOWED:
            return of_any
    return max(_verdict(value) for value in outcomes(program, call.words()))


def _verdict(value: Word) -> Verdict:
    return Verdict.HARMS if value is None else VERDICTS.get(value & ACTION, Verdict.HARMS)


@dataclass(frozen=True, slots=True)
class _State:
    """A program under way: where it is, its registers, its memory."""

    at: int = 0
    a: Word = 0
    x: Word = 0
    memory: tuple[Word, ...] = (0,) * 16


def outcomes(program: bytes, data: Sequence[Word]) -> frozenset[Word]:
    """All values that a program may return; `ANY` when one of them cannot be told."""
    code = list(INSTRUCTION.iter_unpack(program))
    found: set[Word] = set()
    states, forked = [_State()], set[_State]()
    for _ in range(MOST_STEPS):
        if not states:
            return frozenset(found)
        state = states.pop()
        if state.at >= len(code):
            break
        ended, following = _step(code[state.at], state, data)
        found |= ended
        if len(following) > 1:
            following = [one for one in following if one not in forked]
            forked.update(following)
        states += following
    return frozenset((ANY,))


def _step(
    instruction: tuple[int, int, int, int], state: _State, data: Sequence[Word]
) -> tuple[set[Word], list[_State]]:
    """Values that it returns there, and the states that follow."""
    code, yes, no, k = instruction
    after = state.at + 1
    if code in (RET_K, RET_A):
        return {k if code == RET_K else state.a}, []
    if code == JA:
        return set(), [_State(after + k, state.a, state.x, state.memory)]
    if code & CLASS == JMP:
        ways = _jump(code & OPERATION, state.a, state.x if code & BY_X else k)
        return set(), [
            _State(after + (yes if way else no), state.a, state.x, state.memory) for way in ways
        ]
    if code & CLASS == ALU:
        value = _arithmetic(code & OPERATION, state.a, state.x if code & BY_X else k)
        ended: set[Word] = {0} if _may_divide_by_zero(code, state.x) else set()
        return ended, [_State(after, value, state.x, state.memory)]
    return set(), [_moved(code, k, state, data)]


def _moved(code: int, k: int, state: _State, data: Sequence[Word]) -> _State:
    """After an instruction that loads, stores or copies. Of an unknown one nothing is known."""
    a, x, memory = state.a, state.x, state.memory
    if code in (LD_ABS, LD_LEN, LD_IMM, LD_MEM, TXA):
        a = {LD_LEN: DATA_BYTES, LD_IMM: k, TXA: x}.get(code, ANY)
        if code == LD_ABS:
            a = data[k // 4] if k % 4 == 0 and k < DATA_BYTES else ANY
        elif code == LD_MEM:
            a = memory[k % 16]
    elif code in (LDX_LEN, LDX_IMM, LDX_MEM, TAX):
        x = {LDX_LEN: DATA_BYTES, LDX_IMM: k, TAX: a}.get(code, memory[k % 16])
    elif code in (ST, STX):
        cell = k % 16
        memory = (*memory[:cell], a if code == ST else x, *memory[cell + 1 :])
    else:
        a, x, memory = ANY, ANY, (ANY,) * 16
    return _State(state.at + 1, a, x, memory)


def _jump(operation: int, a: Word, other: Word) -> tuple[bool, ...]:
    """Ways it may go."""
    if a is None or other is None:
        return (True, False)
    if operation == 0x10:
        return (a == other,)
    if operation == 0x20:
        return (a > other,)
    if operation == 0x30:
        return (a >= other,)
    if operation == 0x40:
        return (bool(a & other),)
    return (True, False)


def _may_divide_by_zero(code: int, x: Word) -> bool:
    return code & OPERATION == 0x30 and bool(code & BY_X) and not x


def _arithmetic(operation: int, a: Word, other: Word) -> Word:
    if a is None or (other is None and operation != NEG):
        return _half_known(operation, a, other)
    if operation == NEG:
        return -a & MASK
    assert other is not None
    if operation in (0x60, 0x70):
        if other > 31:
            return ANY
        return (a << other if operation == 0x60 else a >> other) & MASK
    if operation == 0x30:
        return a // other if other else ANY
    return {
        0x00: a + other & MASK,
        0x10: a - other & MASK,
        0x20: a * other & MASK,
        0x40: a | other,
        0x50: a & other,
        0xA0: a ^ other,
    }.get(operation, ANY)


def _half_known(operation: int, a: Word, other: Word) -> Word:
    """A mask of nothing leaves nothing."""
    return 0 if operation == 0x50 and 0 in (a, other) else ANY

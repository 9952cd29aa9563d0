# SPDX-License-Identifier: Apache-2.0
"""What the nets of many threads have in common, so that C can make one of them in no time.

A pattern is found by trial: a net is planned at two places, for different ids and registers, and
what differs is what has to be put in (struct seam_pattern). So there is one description of a net,
`kernel.net` and `kernel.chain`, and a pattern can be made before the threads are stopped.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torpor.engine import native
from torpor.engine.kernel.addressspace import AddressSpace, Scratch, Way
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.chain import WORD, Call, Chain
from torpor.engine.kernel.net import Facts, Net, room_for

Calls = Callable[[int], Sequence[Call]]
SOMEWHERE, STEP = 1 << 40, 1 << 12
"""An address that no argument is by chance, and how far another one is from it."""
ONE, OTHER = 0x1111_1111_1111, 0x2222_2222_2222
REGISTERS, MASK, XSTATE = range(3)
FROM_NOWHERE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Calls for a thread, made once the address of its buffer is known. Equal ones are one."""

    calls: Calls
    answer_bytes: int
    """Of the buffer; it is as long, and read once the calls are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Nets for one question in one address space."""

    native: native.Pattern
    room: int
    """Bytes of scratch for one net."""
    buffer_at: int
    """Of a region, for the calls."""
    results: int
    """How many results of a chain there are, before the answers."""


def pattern_of(space: AddressSpace, question: Question, signal: int, xstate_size: int) -> Pattern:
    """With a ``signal`` calls are made in a chain, without one by one."""
    return _pattern(space.way, question, signal, xstate_size)


@lru_cache(maxsize=128)
def _pattern(way: Way, question: Question, signal: int, xstate_size: int) -> Pattern:
    """Processes that were forked have code and libraries at the same addresses."""
    chain = None
    if way.pieces is not None and signal:
        chain = Chain.of(way.pieces, question.calls, signal)
    buffer_size = question.answer_bytes
    if chain is not None:
        buffer_size += WORD * chain.count + chain.size
    room = room_for(buffer_size, xstate_size)

    def trial(at: int, registers: int, ids: tuple[int, int] = (0, 0)) -> _Trial:
        regs = arch.Regs.unpack(struct.pack("<Q", registers) * arch.Regs.WORDS)
        facts = Facts(tid=0, original=regs, restart=arch.Regs(), mask=0, xstate=bytes(xstate_size))
        net = Net.of(facts, way, Scratch(at, room), buffer_size)
        return _Trial.of(net, way, chain, ids)

    here, there = trial(SOMEWHERE, ONE), trial(SOMEWHERE + STEP, ONE)
    others = trial(SOMEWHERE, OTHER)
    by_id = trial(SOMEWHERE, ONE, (1, 0)), trial(SOMEWHERE, ONE, (0, 1))
    moving = [b - a >> 12 for a, b in zip(here.words, there.words, strict=True)]
    process, thread = ([b - a for a, b in zip(here.words, one.words, strict=True)] for one in by_id)
    fixed = [word - SOMEWHERE * moves for word, moves in zip(here.words, moving, strict=True)]
    words = native.PatternWords(
        content=struct.pack(f"<{len(fixed)}Q", *(word & arch.WORD_MASK for word in fixed)),
        sums=[
            (WORD * i, *sums)
            for i, sums in enumerate(zip(moving, process, thread, strict=True))
            if any(sums)
        ],
        pieces=_pieces(here.frame_at, xstate_size),
        armed=_edits(here.armed, there.armed, others.armed),
        base=_edits(here.base, there.base, others.base),
        passes=[] if chain is None else _passes(chain, here, there),
        answer_at=here.buffer_at,
        answer_size=question.answer_bytes + (WORD * chain.count if chain is not None else 0),
    )
    results = chain.count if chain is not None else 0
    return Pattern(
        native=native.Pattern(words), room=room, buffer_at=here.buffer_at, results=results
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A net somewhere. Places are counted from its region on."""

    start: int
    words: Sequence[int]
    armed: Sequence[int]
    base: Sequence[int]
    buffer_at: int
    chain_at: int
    """Of the words of a chain."""
    frame_at: int

    @classmethod
    def of(cls, net: Net, way: Way, chain: Chain | None, ids: tuple[int, int]) -> "_Trial":
        start, mark = net.region.start, net.region.mark
        words, base = b"", net.base
        if chain is not None and way.pieces is not None:
            words, base = chain.content(net.buffer, ids), net.armed.copy()
            base.rip = way.pieces.pop_rdi
        at = net.chain_at - len(words)
        content = mark + bytes(at - start - len(mark)) + words + net.content
        content += bytes(-len(content) % WORD)
        return cls(
            start=start,
            words=struct.unpack(f"<{len(content) // WORD}Q", content),
            armed=struct.unpack(f"<{arch.Regs.WORDS}Q", net.armed.pack()),
            base=struct.unpack(f"<{arch.Regs.WORDS}Q", base.pack()),
            buffer_at=net.buffer - start,
            chain_at=at - start,
            frame_at=net.chain_at + len(way.chain) - start,
        )


def _edits(here: Sequence[int], there: Sequence[int], others: Sequence[int]) -> list[native.Edit]:
    """The registers that are not those of before, whatever these are."""
    found = []
    for i, (value, moved, other) in enumerate(zip(here, there, others, strict=True)):
        if (value, other) != (ONE, OTHER):
            moves = moved - value >> 12
            found.append((i, FROM_NOWHERE, value - SOMEWHERE * moves & arch.WORD_MASK, moves))
    return found


def _pieces(frame_at: int, xstate_size: int) -> list[tuple[int, int, int, int]]:
    """What a frame has of a thread; sw_reserved of the XSAVE area is the frame's own."""
    found = [
        (REGISTERS, WORD * register, frame_at + at, size)
        for register, at, size in arch.FRAME_REGISTERS
    ]
    found.append((MASK, 0, frame_at + arch.FRAME_MASK_AT, WORD))
    at = -(-(frame_at + arch.SIGFRAME_HEAD.size) // arch.FPSTATE_ALIGN) * arch.FPSTATE_ALIGN
    return found + [
        (XSTATE, source, at + to, size) for source, to, size in arch.xstate_pieces(xstate_size)
    ]


def _passes(chain: Chain, here: _Trial, there: _Trial) -> list[tuple[int, int, int, int, int]]:
    found = []
    for one, other in zip(
        chain.passes(here.chain_at, here.start + here.buffer_at),
        chain.passes(there.chain_at, there.start + there.buffer_at),
        strict=True,
    ):
        first, last, r10, r8 = one
        moves = other[3] - r8 >> 12
        found.append((first, last, r10, r8 - moves * SOMEWHERE & arch.WORD_MASK, moves))
    return found

# SPDX-License-Identifier: Apache-2.0
"""Asking many stopped threads at once: the calls of `kernel.remote`, in step.

Of one call to the next a thread has to be woken and waited for twice, which is most of what a
call costs. Here all threads of a wave make their first call, then all their second one, and so
on; each has a net of its own. Where that can be, a thread makes all of them in a chain, which is
one step (`kernel.chain`). Nets of one process lie side by side at the bottom of its stack,
each with its mark, as those of engines that died do (`AddressSpace.scratch`).
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torpor.engine import native
from torpor.engine.kernel.addressspace import AddressSpace, Scratch
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.chain import WORD, Call, Chain
from torpor.engine.kernel.net import Facts, Net
from torpor.engine.native import Borrowing

FEWEST, MOST = 8, 24
"""Nets in one process: as many as fit below its stack pointers, and at least a few."""
WAVE = 64

Calls = Callable[[int], Sequence[Call]]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Calls for one thread, made once the address of its buffer is known."""

    tid: int
    calls: Calls
    answer_bytes: int
    """Of the buffer; it is as long, and read once the calls are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions to the threads of one process, and what was known of each before."""

    space: AddressSpace
    questions: Sequence[Question]
    facts: Sequence[Facts]
    chains: dict[tuple[Calls, int], Chain] = field(default_factory=dict)
    """By the calls and the signal."""
    rooms: list[int] = field(default_factory=list)
    """Bytes of scratch that each net takes."""

    def __post_init__(self) -> None:
        for i, (fact, question) in enumerate(zip(self.facts, self.questions, strict=True)):
            key = question.calls, fact.signal
            if self.space.pieces is not None and fact.signal and key not in self.chains:
                self.chains[key] = Chain.of(self.space.pieces, *key)
            self.rooms.append(fact.room(self.buffer_bytes(i)))

    def in_chain(self, facts: Facts) -> bool:
        """Whether a thread can make all its calls in one go."""
        return self.space.pieces is not None and facts.signal != 0

    def buffer_bytes(self, number: int) -> int:
        """What a net must have room for, beside the frame."""
        question, fact = self.questions[number], self.facts[number]
        if not self.in_chain(fact):
            return question.answer_bytes
        chain = self.chains[question.calls, fact.signal]
        return question.answer_bytes + WORD * chain.count + chain.size

    @property
    def side_by_side(self) -> int:
        """How many nets there may be at a time."""
        if len(self.rooms) <= FEWEST:
            return FEWEST
        return min(max(self.space.unused_bytes() // max(self.rooms), FEWEST), MOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a thread said, and how it stands. Results may be -errno."""

    facts: Facts
    results: list[int]
    buffer: bytes


def ask(processes: Sequence[tuple[AddressSpace, Sequence[Question]]]) -> list[list[Answer]]:
    """Answers in the order of the questions. All threads of the processes must be stopped.

    Raises Refused for a thread that cannot be borrowed, other errors when calls could not be
    made; every thread stands as it did before.
    """
    answers: list[list[Answer]] = [[] for _ in processes]
    asked = _asked(processes)
    for wave in _waves([(len(one.questions), one.side_by_side) for one in asked]):
        spread = []
        for number, first, last in wave:
            asked[number].space.verify()
            spread += [(number, *one) for one in _place(asked[number], first, last)]
        done = native.borrow_all([borrowing for _, _, borrowing in spread])
        for (number, facts, borrowing), (results, buffer) in zip(spread, done, strict=True):
            question = asked[number].questions[len(answers[number])]
            told = _split(buffer, question) if borrowing.signal else (results, buffer)
            answers[number].append(Answer(facts=facts, results=told[0], buffer=told[1]))
    return answers


def _asked(processes: Sequence[tuple[AddressSpace, Sequence[Question]]]) -> list[Asked]:
    facts = iter(Facts.of([q.tid for _, questions in processes for q in questions]))
    found = []
    for space, questions in processes:
        mine = [next(facts) for _ in questions]
        found.append(Asked(space=space, questions=questions, facts=mine))
    return found


def _waves(counts: Sequence[tuple[int, int]]) -> list[list[tuple[int, int, int]]]:
    """Shares (process, first, last) of processes with so many threads, so many at a time.

    Of all not too many.
    """
    waves: list[list[tuple[int, int, int]]] = []
    begun = [0] * len(counts)
    while any(first < count for first, (count, _) in zip(begun, counts, strict=True)):
        wave: list[tuple[int, int, int]] = []
        room = WAVE
        for number, (count, most) in enumerate(counts):
            first = begun[number]
            last = min(first + most, count, first + room)
            if first < last:
                wave.append((number, first, last))
                begun[number] = last
                room -= last - first
        waves.append(wave)
    return waves


def _place(asked: Asked, first: int, last: int) -> list[tuple[Facts, Borrowing]]:
    rooms = asked.rooms[first:last]
    at = asked.space.scratch(sum(rooms)).start
    found = []
    for i, room in enumerate(rooms, first):
        fact, question = asked.facts[i], asked.questions[i]
        net = Net.of(fact, asked.space, Scratch(at, room), asked.buffer_bytes(i))
        borrowing = (
            _chained(fact, net, asked, question)
            if asked.in_chain(fact)
            else _one_by_one(fact, net, question)
        )
        found.append((fact, borrowing))
        at += room
    return found


def _chained(facts: Facts, net: Net, asked: Asked, question: Question) -> Borrowing:
    """All calls in a chain. Results come before the answers, in one buffer."""
    assert asked.space.pieces is not None
    chain = asked.chains[question.calls, facts.signal]
    words, mark, base = chain.content(net.buffer, facts.inside), net.region.mark, net.armed.copy()
    base.rip = asked.space.pieces.pop_rdi
    start = net.chain_at - chain.size
    return Borrowing(
        tid=facts.tid,
        region=net.region.start,
        content=mark + bytes(start - net.region.start - len(mark)) + words + net.content,
        armed=net.armed,
        base=base,
        original=facts.original,
        mask=facts.mask,
        calls=(),
        answer_at=net.buffer,
        answer_size=WORD * chain.count + question.answer_bytes,
        signal=facts.signal,
        passes=chain.passes(start, net.buffer),
    )


def _split(buffer: bytes, question: Question) -> tuple[list[int], bytes]:
    size = len(buffer) - question.answer_bytes
    return list(struct.unpack_from(f"<{size // WORD}q", buffer)), buffer[size:]


def _one_by_one(facts: Facts, net: Net, question: Question) -> Borrowing:
    mark = net.region.mark
    content = mark + bytes(net.chain_at - net.region.start - len(mark)) + net.content
    calls = [
        (arch.syscall_number(name), *args, *(0,) * (6 - len(args)))
        for name, args in question.calls(net.buffer)
    ]
    return Borrowing(
        tid=facts.tid,
        region=net.region.start,
        content=content,
        armed=net.armed,
        base=net.base,
        original=facts.original,
        mask=facts.mask,
        calls=calls,
        answer_at=net.buffer,
        answer_size=question.answer_bytes,
    )

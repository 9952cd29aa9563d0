# SPDX-License-Identifier: Apache-2.0
"""Asking many stopped threads at once: the calls of `kernel.remote`, in step.

Of one call to the next a thread has to be woken and waited for twice, which is most of what a
call costs. Here all threads of a wave make their first call, then all their second one, and so
on; each has a net of its own. Nets of one process lie side by side at the bottom of its stack,
each with its mark, as those of engines that died do (`AddressSpace.scratch`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torpor.engine import native
from torpor.engine.kernel.addressspace import AddressSpace, Scratch
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.net import Facts, Net
from torpor.engine.native import Borrowing

FEWEST, MOST = 8, 24
"""Nets in one process: as many as fit below its stack pointers, and at least a few."""
WAVE = 64

Call = tuple[str, Sequence[int]]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Calls for one thread, made once the address of its buffer is known."""

    tid: int
    calls: Callable[[int], Sequence[Call]]
    answer_bytes: int
    """Of the buffer; it is as long, and read once the calls are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions to the threads of one process, and what was known of each before."""

    space: AddressSpace
    questions: Sequence[Question]
    facts: Sequence[Facts]
    rooms: Sequence[int]
    """Bytes of scratch that each net takes."""

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
        for (number, facts, _), (results, buffer) in zip(spread, done, strict=True):
            answers[number].append(Answer(facts=facts, results=results, buffer=buffer))
    return answers


def _asked(processes: Sequence[tuple[AddressSpace, Sequence[Question]]]) -> list[Asked]:
    facts = iter(Facts.of([q.tid for _, questions in processes for q in questions]))
    found = []
    for space, questions in processes:
        mine = [next(facts) for _ in questions]
        rooms = [f.room(q.answer_bytes) for f, q in zip(mine, questions, strict=True)]
        found.append(Asked(space=space, questions=questions, facts=mine, rooms=rooms))
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
        net = Net.of(fact, asked.space, Scratch(at, room), question.answer_bytes)
        found.append((fact, _borrowing(fact, net, question)))
        at += room
    return found


def _borrowing(facts: Facts, net: Net, question: Question) -> Borrowing:
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

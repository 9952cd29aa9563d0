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

SIDE_BY_SIDE = 8
"""Nets in one process: a few pages each, far below what a stack has mapped unused."""
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
    for wave in _waves([len(questions) for _, questions in processes]):
        spread = []
        for number, first, last in wave:
            space, questions = processes[number]
            space.verify()
            spread += [(number, *one) for one in _place(space, questions[first:last])]
        done = native.borrow_all([borrowing for _, _, borrowing in spread])
        for (number, facts, _), (results, buffer) in zip(spread, done, strict=True):
            answers[number].append(Answer(facts=facts, results=results, buffer=buffer))
    return answers


def _waves(counts: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """Shares (process, first, last): of each process a few at a time, of all not too many."""
    waves: list[list[tuple[int, int, int]]] = []
    for first in range(0, max(counts, default=0), SIDE_BY_SIDE):
        wave: list[tuple[int, int, int]] = []
        for number, count in enumerate(counts):
            last = min(first + SIDE_BY_SIDE, count)
            if last <= first:
                continue
            if sum(b - a for _, a, b in wave) + last - first > WAVE:
                waves.append(wave)
                wave = []
            wave.append((number, first, last))
        waves.append(wave)
    return waves


def _place(space: AddressSpace, questions: Sequence[Question]) -> list[tuple[Facts, Borrowing]]:
    facts = [Facts.of(question.tid) for question in questions]
    rooms = [f.room(q.answer_bytes) for f, q in zip(facts, questions, strict=True)]
    at = space.scratch(sum(rooms)).start
    found = []
    for fact, question, room in zip(facts, questions, rooms, strict=True):
        net = Net.of(fact, space, Scratch(at, room), question.answer_bytes)
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

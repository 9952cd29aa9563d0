# SPDX-License-Identifier: Apache-2.0
"""Asking many stopped threads at once: the calls of `kernel.remote`, in step.

Of one call to the next a thread has to be woken and waited for twice, which is most of what a
call costs. Here all threads of a wave make their first call, then all their second one, and so
on; each has a net of its own. Where that can be, a thread makes all of them in a chain, which is
one step (`kernel.chain`). Nets of one process lie side by side at the bottom of its stack,
each with its mark, as those of engines that died do (`AddressSpace.scratch`).

A workload with many threads stands still for what is done here for each: nets are made in C by
patterns (`kernel.pattern`), waves follow each other in C, and nothing that a thread has told is
unpacked before it is asked for (`Answer`).
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torpor.engine import native
from torpor.engine.errors import Error
from torpor.engine.kernel import chain, proc
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.chain import WORD
from torpor.engine.kernel.net import refuse, settled_rip
from torpor.engine.kernel.pattern import Calls, Pattern, Question, pattern_of

__all__ = ["Answer", "Calls", "Process", "Question", "ask", "foresee"]

FEWEST, MOST = 8, 24
"""Nets in one process: as many as fit below its stack pointers, and at least a few."""
WAVE = 64

Process = tuple[AddressSpace, Sequence[tuple[int, Question]]]
"""Threads and what each is asked."""


class Standing:
    """A thread that stands still, and what was read of it before it was asked."""

    __slots__ = ("_facts", "_number", "inside", "policy", "signals", "status", "tid")

    def __init__(
        self, facts: native.FactRows, number: int, stand: native.Stand, status: bytes
    ) -> None:
        self._facts, self._number = facts, number
        self.tid, self.policy, self.status = stand.tid, stand.policy, status
        self.inside, self.signals = proc.ids_and_signals(status)
        """(process, thread) as it sees them, and the lines of ``status`` that tell of signals."""

    @property
    def asked(self) -> native.ThreadFacts:
        """What the kernel told; its registers are those to go on with."""
        return self._facts.facts(self._number)

    @property
    def restart(self) -> arch.Regs:
        """Registers for an image: an interrupted call is issued again."""
        asked = self.asked
        return arch.restart_registers(
            asked.regs, signal_pending=_has_signal(self.signals), code=asked.code
        )


class Answer:
    """What a thread said, and how it stands. Results may be -errno."""

    __slots__ = ("_raw", "_result_count", "_results", "thread")

    def __init__(
        self, thread: Standing, results: list[int] | None, raw: bytes, result_count: int
    ) -> None:
        self.thread = thread
        self._results, self._raw, self._result_count = results, raw, result_count

    @property
    def results(self) -> list[int]:
        """Of its calls."""
        if self._results is not None:
            return self._results
        return list(struct.unpack_from(f"<{self._result_count}q", self._raw))

    @property
    def buffer(self) -> bytes:
        """What calls have put there."""
        return self._raw[WORD * self._result_count :]


@dataclass(slots=True)
class _Plan:
    """One thread: how it is asked."""

    thread: Standing
    number: int
    question: Question
    pattern: Pattern
    signal: int
    restart: native.Edits


class _Patterns:
    """Of one address space: threads that are asked the same mostly have the same pattern."""

    __slots__ = ("_found", "_space", "have_chains")

    def __init__(self, space: AddressSpace) -> None:
        self._space, self.have_chains = space, space.way.pieces is not None
        self._found: dict[tuple[int, int, int], Pattern] = {}

    def of(self, question: Question, signal: int, xstate_size: int) -> Pattern:
        """As `pattern_of`, which compares all of the space and of the question each time."""
        key = id(question), signal, xstate_size
        if key not in self._found:
            self._found[key] = pattern_of(self._space, question, signal, xstate_size)
        return self._found[key]


def foresee(space: AddressSpace, questions: Iterable[Question], status: bytes) -> None:
    """Make patterns for threads of a process that runs, as it would be asked now."""
    signals = proc.ids_and_signals(status)[1]
    signal = _signal(signals) if space.way.pieces is not None else 0
    for question in questions:
        pattern_of(space, question, signal, native.xstate_enabled()[1])


def ask(processes: Sequence[Process]) -> list[list[Answer]]:
    """Answers in the order of the questions. All threads of the processes must be stopped.

    Raises Refused for a thread that cannot be borrowed, other errors when calls could not be
    made; every thread stands as it did before.
    """
    facts = native.FactRows([tid for _, asked in processes for tid, _ in asked])
    stands = facts.stands()
    statuses = proc.read_many([(one.tid, "status") for one in stands])
    plans: list[list[_Plan]] = []
    at = 0
    for space, asked in processes:
        mine = range(at, at + len(asked))
        at += len(asked)
        patterns = _Patterns(space)
        plans.append(
            [
                _plan(facts, number, stands[number], statuses[number], patterns, question)
                for number, (_, question) in zip(mine, asked, strict=True)
            ]
        )
        space.stands([stands[number].rsp for number in mine])
    try:
        borrowed = list(_borrowed([space for space, _ in processes], plans))
        told = native.borrow_all(facts, [borrowing for _, _, borrowing in borrowed])
    finally:
        for space, _ in processes:
            space.stands(None)
    answers: list[list[Answer]] = [[] for _ in processes]
    for (process, plan, borrowing), (results, raw) in zip(borrowed, told, strict=True):
        answers[process].append(
            Answer(plan.thread, results if borrowing.calls else None, raw, plan.pattern.results)
        )
    return answers


def _plan(
    facts: native.FactRows,
    number: int,
    stand: native.Stand,
    status: bytes | Error,
    patterns: "_Patterns",
    question: Question,
) -> _Plan:
    if isinstance(status, Error):
        raise status
    if stand.dispatch or stand.cs != arch.USER_CS_64:
        refuse(stand.tid, stand.dispatch, stand.cs)
    if stand.rseq_cs:
        facts.move(number, settled_rip(stand.tid, stand.rip, stand.rseq_cs))
    thread = Standing(facts, number, stand, status)
    signal = _signal(thread.signals) if patterns.have_chains and thread.inside[1] else 0
    edits = arch.restart_edits(
        stand.rax, stand.orig_rax, stand.rsi, stand.r10,
        signal_pending=_has_signal(thread.signals), code=stand.code[: stand.code_size],
    )  # fmt: skip
    pattern = patterns.of(question, signal, stand.xstate_size)
    return _Plan(thread, number, question, pattern, signal, _edits(edits))


def _borrowed(
    spaces: Sequence[AddressSpace], plans: Sequence[Sequence[_Plan]]
) -> Iterator[tuple[int, _Plan, native.Borrowing]]:
    """All in their waves. Each wave has the same scratch."""
    most = [
        _side_by_side(space, max((p.pattern.room for p in mine), default=0), len(mine))
        for space, mine in zip(spaces, plans, strict=True)
    ]
    counts = [(len(mine), many) for mine, many in zip(plans, most, strict=True)]
    waves = _waves(counts)
    for space in spaces:
        space.verify()
    starts = {
        number: spaces[number].scratch(most[number] * max(p.pattern.room for p in mine)).start
        for number, mine in enumerate(plans)
        if mine
    }
    for wave, shares in enumerate(waves):
        for number, first, last in shares:
            at = starts[number]
            for plan in plans[number][first:last]:
                yield number, plan, _borrowing(wave, plan, at)
                at += plan.pattern.room


def _side_by_side(space: AddressSpace, room: int, count: int) -> int:
    """How many nets there may be at a time."""
    if count <= FEWEST:
        return count
    return min(max(space.unused_bytes() // room, FEWEST), MOST, count)


def _borrowing(wave: int, plan: _Plan, region: int) -> native.Borrowing:
    calls: Sequence[Sequence[int]] = ()
    if not plan.signal:
        calls = [
            (arch.syscall_number(name), *args, *(0,) * (6 - len(args)))
            for name, args in plan.question.calls(region + plan.pattern.buffer_at)
        ]
    return native.Borrowing(
        wave, plan.number, plan.pattern.native, region, plan.signal, plan.thread.inside,
        plan.restart, calls,
    )  # fmt: skip


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


@lru_cache(maxsize=256)
def _signal(signals: bytes) -> int:
    return chain.signal_for(signals)


@lru_cache(maxsize=256)
def _has_signal(signals: bytes) -> bool:
    """Whether one is about to be delivered."""
    return bool(proc.deliverable_signals(signals))


@lru_cache(maxsize=256)
def _edits(edits: tuple[arch.RegEdit, ...]) -> native.Edits:
    return native.Edits([(*one, 0) for one in edits])

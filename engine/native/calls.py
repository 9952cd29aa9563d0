# SPDX-License-Identifier: Apache-2.0
"""System calls that a stopped thread is made to issue; see `kernel.remote` and `kernel.borrow`."""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torpor.engine.kernel.arch.x86_64 import Regs
from torpor.engine.native.seam import (
    DEFAULT_TIMEOUT_S,
    Address,
    address_of,
    check,
    ffi,
    lib,
    new_uncleared,
    ns,
)
from torpor.engine.native.threads import FACTS_BYTES, FactRows

ROW = struct.Struct("<4i13Q")
"""struct seam_borrow"""
Edit = tuple[int, int, int, int]
"""A register, the one that it is taken from or -1, a word, and a multiple of the region."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternWords:
    """Rows of the tables of struct seam_pattern, see native/include/torpor/seam.h."""

    content: bytes
    sums: Sequence[tuple[int, int, int, int]]
    pieces: Sequence[tuple[int, int, int, int]]
    armed: Sequence[Edit]
    base: Sequence[Edit]
    passes: Sequence[tuple[int, int, int, int, int]]
    answer_at: int
    answer_size: int


class Pattern:
    """What nets of many threads have in common, for `borrow_all`; see `kernel.pattern`."""

    def __init__(self, words: PatternWords) -> None:
        self.size = len(words.content)
        self.answer_size = words.answer_size
        row = ffi.new("struct seam_pattern *")
        content = ffi.from_buffer(words.content)
        sums = ffi.new("struct seam_sum[]", words.sums)
        pieces = ffi.new("struct seam_piece[]", words.pieces)
        armed, base = new_edits(words.armed), new_edits(words.base)
        passes = ffi.new("struct seam_pass[]", words.passes)
        row.content, row.size = content, self.size
        row.sums, row.sum_count = sums, len(words.sums)
        row.pieces, row.piece_count = pieces, len(words.pieces)
        row.armed, row.armed_count = armed, len(words.armed)
        row.base, row.base_count = base, len(words.base)
        row.passes, row.pass_count = passes, len(words.passes)
        row.answer_at, row.answer_size = words.answer_at, words.answer_size
        self._live = row, content, sums, pieces, armed, base, passes
        self.address = address_of(row)


class Edits:
    """Registers that are set in a frame, for `borrow_all`."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._live = new_edits(edits)
        self.address, self.count = address_of(self._live), len(edits)


class Borrowing(NamedTuple):
    """A stopped thread, its net and its calls, for `borrow_all`; see `kernel.remote`."""

    wave: int
    """Which threads it is borrowed with."""
    number: int
    """Its row in the facts."""
    pattern: Pattern
    region: Address
    signal: int
    """Ends each pass of the pattern; 0 for ``calls`` one by one."""
    inside: tuple[int, int]
    """(process, thread) as it sees them."""
    restart: Edits
    calls: Sequence[Sequence[int]] = ()


def remote_calls(
    tid: int, base: Regs, calls: Sequence[Sequence[int]], timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[int]:
    """Run system calls (number and six arguments each) with ``base`` for all other registers.

    The task must be stopped; it is left at the exit of the last call. Use `kernel.remote`.
    """
    words = array("Q", [value & (1 << 64) - 1 for call in calls for value in call])
    results = ffi.new("int64_t[]", len(calls))
    result = lib.seam_remote_calls(
        tid,
        ffi.from_buffer("uint64_t[]", base.pack()),
        ffi.from_buffer("uint64_t[]", words),
        len(calls),
        ns(timeout_s),
        results,
    )
    check(result, "an injected system call", tid)
    return list(results)


def arm(tid: int, regs: Regs) -> None:
    """Registers of a net, and all signals blocked; see `kernel.remote`, steps 2 and 3."""
    words = ffi.from_buffer("uint64_t[]", regs.pack())
    check(lib.seam_arm(tid, words), "ptrace(SETREGS)", tid)


def disarm(tid: int, mask: int, regs: Regs) -> None:
    """Mask and registers of before; see `kernel.remote`, steps 6 and 7."""
    words = ffi.from_buffer("uint64_t[]", regs.pack())
    check(lib.seam_disarm(tid, mask, words), "ptrace(SETREGS)", tid)


def borrow_all(
    facts: FactRows, tasks: Sequence[Borrowing], timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[tuple[list[int], bytes]]:
    """Run the calls of each, wave by wave: (results of calls one by one, answer).

    All of them stand as before at the end, whatever failed; then the first error is raised.
    """
    rows = bytearray(ROW.size * max(len(tasks), 1))
    answers = new_uncleared("char[]", max(sum(t.pattern.answer_size for t in tasks), 1))
    answer_at, slot = address_of(answers), _Slots(tasks)
    keep: list[Any] = []
    results: list[Any] = []
    for i, task in enumerate(tasks):
        pattern = task.pattern
        calls_at, results_at, count = 0, 0, len(task.calls)
        if count:
            words = array("Q", [value & (1 << 64) - 1 for call in task.calls for value in call])
            results.append(ffi.new("int64_t[]", count))
            keep.append(ffi.from_buffer("uint64_t[]", words))
            calls_at, results_at = address_of(keep[-1]), address_of(results[-1])
        else:
            results.append(None)
        ROW.pack_into(
            rows, ROW.size * i, task.wave, task.signal, 0, 0,
            facts.address + FACTS_BYTES * task.number, pattern.address, task.region,
            *task.inside, task.restart.address, task.restart.count, *slot.next(task),
            calls_at, count, results_at, answer_at,
        )  # fmt: skip
        answer_at += pattern.answer_size
    table = ffi.from_buffer("struct seam_borrow[]", rows)
    lib.seam_borrow_all(table, len(tasks), ns(timeout_s))
    for wave_error, task in zip(ROW.iter_unpack(rows), tasks, strict=False):
        check(wave_error[2], "an injected system call", facts.tids[task.number])
    raw, at, told = ffi.buffer(answers), 0, []
    for task, result in zip(tasks, results, strict=True):
        size = task.pattern.answer_size
        told.append(([] if result is None else list(result), raw[at : at + size]))
        at += size
    return told


class _Slots:
    """Rooms for nets, and for what was in their place, which all waves use in turn."""

    def __init__(self, tasks: Sequence[Borrowing]) -> None:
        sizes: dict[int, int] = {}
        for task in tasks:
            sizes[task.wave] = sizes.get(task.wave, 0) + task.pattern.size
        self._room = new_uncleared("char[]", 2 * max(sizes.values(), default=0) + 1)
        self._start = self._at = address_of(self._room)
        self._wave = -1

    def next(self, task: Borrowing) -> tuple[int, int]:
        """Of the next in the table."""
        if task.wave != self._wave:
            self._wave, self._at = task.wave, self._start
        size = task.pattern.size
        self._at += 2 * size
        return self._at - 2 * size, self._at - size


def new_edits(edits: Sequence[Edit]) -> Any:  # noqa: ANN401
    """An array of struct seam_edit."""
    return ffi.new("struct seam_edit[]", list(edits))

# SPDX-License-Identifier: Apache-2.0
"""System calls that a stopped thread is made to issue; see `kernel.remote` and `kernel.borrow`."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.kernel.arch.x86_64 import Regs
from torpor.engine.native.seam import DEFAULT_TIMEOUT_S, Address, check, ffi, lib, ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowing:
    """A stopped task, its net and its calls, for `borrow_all`; see `kernel.remote`."""

    tid: int
    region: Address
    """Where ``content`` is written, and what was there is put back."""
    content: bytes
    armed: Regs
    base: Regs
    original: Regs
    mask: int
    calls: Sequence[Sequence[int]]
    answer_at: Address
    answer_size: int
    signal: int = 0
    """Ends each of the passes; see `kernel.chain`."""
    passes: Sequence[int] = ()
    """Four words each."""


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
    tasks: Sequence[Borrowing], timeout_s: float = DEFAULT_TIMEOUT_S
) -> list[tuple[list[int], bytes]]:
    """Run each task's calls, all tasks side by side: (results, bytes at ``answer_at``).

    All of them stand as before at the end, whatever failed; then the first error is raised.
    """
    rows = ffi.new("struct seam_borrow[]", len(tasks))
    keep = [_fill_row(row, task) for row, task in zip(rows, tasks, strict=True)]
    lib.seam_borrow_all(rows, len(tasks), ns(timeout_s))
    for row in rows:
        check(row.error, "an injected system call", row.tid)
    return [
        (ffi.unpack(row.results, row.call_count), ffi.buffer(row.answer, row.answer_size)[:])
        for row, _ in zip(rows, keep, strict=True)
    ]


def _fill_row(row: Any, task: Borrowing) -> list[Any]:  # noqa: ANN401
    """Fill a struct seam_borrow; what is returned has to live as long as it."""
    words = array("Q", [value & (1 << 64) - 1 for call in task.calls for value in call])
    size = len(task.content)
    row.tid, row.region, row.size, row.mask = task.tid, task.region, size, task.mask
    row.net = content = ffi.from_buffer(task.content)
    row.saved = saved = ffi.new("char[]", size)
    row.armed = armed = ffi.from_buffer("uint64_t[]", task.armed.pack())
    row.base = base = ffi.from_buffer("uint64_t[]", task.base.pack())
    row.original = original = ffi.from_buffer("uint64_t[]", task.original.pack())
    row.calls = calls = ffi.from_buffer("uint64_t[]", words)
    row.call_count = len(task.calls)
    row.results = results = ffi.new("int64_t[]", max(len(task.calls), 1))
    row.signal, row.pass_count = task.signal, len(task.passes) // 4
    row.passes = passes = ffi.from_buffer("uint64_t[]", array("Q", task.passes))
    row.answer_at, row.answer_size = task.answer_at, task.answer_size
    row.answer = answer = ffi.new("char[]", max(task.answer_size, 1))
    return [content, saved, armed, base, original, calls, results, passes, answer]

# SPDX-License-Identifier: Apache-2.0
"""Threads: what is asked of each while it stands still, and what is made of that after the thaw.

The calls that a thread is made to issue are most of the pause of a task with many threads, so
there are only those that nothing else answers: alternate stack, address that is cleared at its
end, parent-death signal, `settings.THREAD`.
"""

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from torpor.engine import native
from torpor.engine.capture import ThreadCapture
from torpor.engine.kernel import proc
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.borrow import Answer, Question
from torpor.engine.kernel.chain import Call
from torpor.engine.kernel.remote import Remote
from torpor.engine.tasks import settings
from torpor.engine.tasks.attributes import SCHED_ATTR
from torpor.engine.tasks.seccomp import MODE_FILTER

PR_GET_TID_ADDRESS, PR_GET_PDEATHSIG, PR_GET_TIMERSLACK = 40, 2, 30
ALTSTACK_BYTES = 24
FiltersOf = Callable[[int], Sequence[tuple[bytes, int]] | None]
"""Filters of a stopped thread, the newest comes first; None when they are not known."""
RESET_ON_FORK, DEADLINE = os.SCHED_RESET_ON_FORK, 6
# where calls put their answers in the buffer
TID_ADDRESS_AT, PDEATHSIG_AT, SETTINGS_AT = 32, 40, 48
BYTES = SETTINGS_AT + settings.SLOT_BYTES * len(settings.THREAD)
"""Of the buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawThread:
    """A thread as it answered. Nothing is parsed that did not lead to a further question."""

    answer: Answer
    pending: Sequence[bytes]
    sched_attr: bytes
    filters: Sequence[tuple[bytes, int]] | None


@dataclass(frozen=True, slots=True)
class ThreadCalls:
    """What every thread is asked."""

    def __call__(self, at: int) -> list[Call]:
        """The calls, with a buffer at ``at``."""
        return [
            ("sigaltstack", (0, at)),
            ("prctl", (PR_GET_TID_ADDRESS, at + TID_ADDRESS_AT, 0, 0, 0)),
            ("prctl", (PR_GET_PDEATHSIG, at + PDEATHSIG_AT, 0, 0, 0)),
            *settings.questions(asked_settings(), at + SETTINGS_AT),
            ("prctl", (PR_GET_TIMERSLACK, 0, 0, 0, 0)),
        ]

    @property
    def count(self) -> int:
        """How many calls."""
        return 4 + len(asked_settings())


CALLS = ThreadCalls()
QUESTION = Question(calls=CALLS, answer_bytes=BYTES)


@cache
def asked_settings() -> tuple[settings.Setting, ...]:
    """Those that a thread of this machine can have. Asked for the first time before the stop."""
    ours = proc.parse_status(proc.read_text("self", "status")).cap_eff
    return settings.thread_settings(proc.processor_flags(), ours)


def take(space: AddressSpace, answer: Answer, filters: FiltersOf) -> RawThread:
    """What its answer leads to: queued signals, a deadline, filters."""
    thread = answer.thread
    is_plain = thread.policy & ~RESET_ON_FORK != DEADLINE
    has_signals, has_filters = _has(thread.signals)
    return RawThread(
        answer=answer,
        pending=native.pending_signals(thread.tid, False) if has_signals else (),
        sched_attr=b"" if is_plain else _sched_attr(thread.tid, space),
        filters=filters(thread.tid) if has_filters else (),
    )


@lru_cache(maxsize=256)
def _has(signals: bytes) -> tuple[bool, bool]:
    """Whether signals wait for this thread alone, whether it has filters."""
    return bool(proc.private_signals(signals)), proc.seccomp_mode(signals) == MODE_FILTER


def finish(raw: RawThread) -> ThreadCapture:
    """After the thaw."""
    thread, results, buffer = raw.answer.thread, raw.answer.results, raw.answer.buffer
    asked, told = thread.asked, 3 + len(asked_settings())
    tid_address, pdeathsig = struct.unpack_from("<Qi", buffer, TID_ADDRESS_AT)
    return ThreadCapture(
        tid=thread.tid,
        comm=proc.thread_name(thread.status),
        status=thread.status.decode("utf-8", "surrogateescape"),
        regs=thread.restart.pack(),
        xstate=asked.xstate,
        sigmask=asked.mask,
        pending=tuple(raw.pending),
        rseq=asked.rseq,
        robust=asked.robust,
        altstack=buffer[:ALTSTACK_BYTES],
        tid_address=tid_address if results[1] >= 0 else 0,
        pdeathsig=pdeathsig,
        policy=asked.policy,
        priority=asked.priority,
        nice=asked.nice,
        affinity=asked.affinity,
        ioprio=asked.ioprio,
        timerslack_ns=max(results[told], 0),
        sched_attr=raw.sched_attr,
        settings=settings.answers(asked_settings(), results[3:told], buffer[SETTINGS_AT:]),
        seccomp=raw.filters,
    )


def inside(raws: Sequence[RawThread]) -> Mapping[int, int]:
    """Thread ids as seen from here → as the threads see them."""
    threads = [raw.answer.thread for raw in raws]
    return {one.tid: one.inside[1] or one.tid for one in threads}


def _sched_attr(tid: int, space: AddressSpace) -> bytes:
    with Remote.safe(tid, space) as remote:
        remote.call("sched_getattr", 0, remote.buffer, SCHED_ATTR.size, 0)
        return remote.read(remote.buffer, SCHED_ATTR.size)

# SPDX-License-Identifier: Apache-2.0
"""What a process is asked by calls of its own while it stands still, beside its threads."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.engine.dump import threads
from torpor.engine.kernel.borrow import Question
from torpor.engine.kernel.chain import Call
from torpor.engine.kernel.proc import Status
from torpor.engine.tasks import landlock, settings

PR_GET_CHILD_SUBREAPER = 37
ACTION_BYTES, ITIMER_BYTES, SIGSET_BYTES = 32, 32, 8
ALWAYS_ASKED = 1 << signal.SIGCHLD - 1
"""Its flags matter with the default action too: whether children leave zombies."""
# where calls of a leader put their answers in the buffer, after those of any thread
SUBREAPER_AT = threads.BYTES
PROCESS_AT = SUBREAPER_AT + 8
ITIMERS_AT = PROCESS_AT + settings.SLOT_BYTES * len(settings.PROCESS)
ACTIONS_AT = ITIMERS_AT + 3 * ITIMER_BYTES


@dataclass(frozen=True, slots=True)
class LeaderCalls:
    """What a process is asked, beside what any of its threads is."""

    signals: tuple[int, ...]
    """Those with an action that is not the default one."""
    ours: int
    """Our own pid."""

    def __call__(self, at: int) -> list[Call]:
        """The calls, with a buffer at ``at``."""
        return [*threads.QUESTION.calls(at), *leader_calls(at, self.signals, self.ours)]


def signals_asked(status: Status) -> tuple[int, ...]:
    """Signals with an action that is not the default one."""
    changed = status.sig_cgt | status.sig_ign | ALWAYS_ASKED
    return tuple(s for s in range(1, 65) if changed >> (s - 1) & 1)


def of_leader(status: Status) -> Question:
    """What a process is asked that has this status."""
    signals = signals_asked(status)
    answers = ACTIONS_AT + ACTION_BYTES * len(signals)
    return Question(calls=LeaderCalls(signals, os.getpid()), answer_bytes=answers)


def leader_calls(at: int, signals: Sequence[int], ours: int) -> list[Call]:
    """What a process is asked, beside what any of its threads is."""
    return [
        ("brk", (0,)),
        ("prctl", (PR_GET_CHILD_SUBREAPER, at + SUBREAPER_AT, 0, 0, 0)),
        *settings.questions(settings.PROCESS, at + PROCESS_AT),
        landlock.question(ours),
        *(("getitimer", (which, at + ITIMERS_AT + ITIMER_BYTES * which)) for which in range(3)),
        *(
            ("rt_sigaction", (signal, 0, at + ACTIONS_AT + ACTION_BYTES * i, SIGSET_BYTES))
            for i, signal in enumerate(signals)
        ),
    ]

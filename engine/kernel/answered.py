# SPDX-License-Identifier: Apache-2.0
"""The part of `LiveFd` that was asked together with others, and need not be asked again."""

import select
import struct
from collections.abc import Sequence

from torpor.engine.asking import LEAST, Answers, Call
from torpor.engine.kernel.abi import FIONREAD
from torpor.engine.kernel.filefacts import FileFacts

PLACE = struct.Struct("<QQ")


class Answered(FileFacts):
    """Answers count only where all of a descriptor's do."""

    __slots__ = ("_answers", "_rank")

    _answers: Answers | None
    _rank: int

    def ranked(self, rank: int) -> None:
        """Its place among those that look like it is known."""
        self._rank = rank

    @property
    def answers(self) -> Answers | None:
        """What it has told, if it was asked."""
        return self._answers

    def told(self, answers: Answers | None) -> None:
        """What was asked of it together with others need not be asked again."""
        self._answers = answers

    def _told(self, call: int, first: int = 0, second: int = 0) -> tuple[int, bytes] | None:
        """An answer; None where the question is to be asked now."""
        answers = self._answers
        if answers is None or not answers.is_whole:
            return None
        return answers.get(call, first, second)

    def _may_be_cut(self, level: int, number: int, size_bytes: int) -> bool:
        """Whether an option was asked for with less room than now, and has filled that."""
        answers = self._answers
        return answers is not None and answers.fills(Call.OPTION, level, number, size_bytes)

    def _told_options(self, wanted: Sequence[tuple[int, int]]) -> list[int | None] | None:
        """Values of int options; None where one was not asked."""
        found: list[int | None] = []
        for level, number in wanted:
            answer = self._told(Call.OPTION, level, number)
            if answer is None:
                return None
            result, raw = answer
            signed = len(raw) == LEAST
            found.append(None if result < 0 else int.from_bytes(raw, "little", signed=signed))
        return found

    def _told_place(self) -> tuple[int, int] | None:
        """Device and inode of what its link leads to."""
        answer = self._told(Call.PLACE)
        if answer is None:
            return None
        device, inode = PLACE.unpack(answer[1])
        return device, inode

    @property
    def is_quiet(self) -> bool:
        """Whether it is known by its answers that nothing waits in it to be read."""
        queued, events = self._told(Call.IOCTL, FIONREAD), self._told(Call.POLL)
        if queued is None or events is None:
            return False
        return not any(queued[1]) and not events[0] & (select.POLLIN | select.POLLPRI)

    def is_own_epoll_target(self, tfd: int, index: int) -> bool:
        """Whether it was answered that the target is what its task has as ``tfd``."""
        told = self._told(Call.TARGET, tfd, index)
        return told is not None and not told[0]

    @property
    def is_queue_told(self) -> bool:
        """Whether what is queued in a pipe was answered."""
        told = self._told(Call.PIPE)
        return told is not None and told[0] >= 0

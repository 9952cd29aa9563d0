# SPDX-License-Identifier: Apache-2.0
"""What is asked of many descriptors in one go, in C, and what they have answered.

A kind says what its `collect` is going to ask (`FileKind.questions`); the view that `collect` reads
through answers from here. So nothing is asked twice, and `collect` can wait until the tasks run on.
"""

import struct
from array import array
from dataclasses import dataclass

SLOT = struct.Struct("<ii")
"""Before the bytes of each answer: what the call returned, and how many bytes it gave."""
LENGTH = struct.Struct("<i")
SOCKADDR_ROOM, PLACE_ROOM = 128, 16
LEAST = 4


class Call:
    """What is called: the numbers of native/seam/ask.c."""

    OPTION = 0
    SOCKNAME = 1
    PEERNAME = 2
    POLL = 3
    FCNTL = 4
    FCNTL_BYTES = 5
    IOCTL = 6
    PLACE = 7
    """Device and inode of what the text of the link leads to now."""
    PIPE = 8
    """What is queued in a pipe, which stays there: each piece behind its length."""
    TARGET = 9
    """Whether what an epoll watches under a number is what its task has there: 0, otherwise 1."""


@dataclass(frozen=True, slots=True)
class Question:
    """A call, its two words, and the room for the answer."""

    call: int
    first: int = 0
    second: int = 0
    size: int = 0


def option(level: int, number: int, size: int = LEAST) -> Question:
    """getsockopt(2). Without room: whether there is anything (SO_GET_FILTER)."""
    return Question(Call.OPTION, int(level), int(number), size)


def fcntl(command: int) -> Question:
    """What a command gives without an argument."""
    return Question(Call.FCNTL, int(command))


def fcntl_bytes(command: int, size: int) -> Question:
    """What a command puts into room for it."""
    return Question(Call.FCNTL_BYTES, int(command), 0, size)


def ioctl(request: int, size: int = LEAST) -> Question:
    """What a request puts into room for it."""
    return Question(Call.IOCTL, int(request), 0, size)


def pipe_content(size: int) -> Question:
    """What is queued in a pipe, when it and the lengths of its pieces need no more room."""
    return Question(Call.PIPE, size=size)


def epoll_target(tfd: int, index: int) -> Question:
    """Of the watches that an epoll has under one number, the one at a place."""
    return Question(Call.TARGET, tfd, index)


def pieces_of(raw: bytes) -> list[bytes]:
    """Of the answer of a pipe."""
    found, at = [], 0
    while at < len(raw):
        (size,) = LENGTH.unpack_from(raw, at)
        at += LENGTH.size
        found.append(raw[at : at + size])
        at += size
    return found


POLL, PLACE = Question(Call.POLL), Question(Call.PLACE, size=PLACE_ROOM)
NAMES = (
    Question(Call.SOCKNAME, size=SOCKADDR_ROOM),
    Question(Call.PEERNAME, size=SOCKADDR_ROOM),
)


class Questions:
    """Some questions, and where their answers are in a record."""

    def __init__(self, *asked: Question) -> None:
        self.asked = asked
        self.words = array("i")
        self.slots: dict[tuple[int, int, int], tuple[int, int]] = {}
        """Place and room of each."""
        self.size = 0
        for one in asked:
            self.words.extend((one.call, one.first, one.second, one.size))
            self.slots[one.call, one.first, one.second] = self.size, one.size
            self.size += SLOT.size + (one.size + 7 & ~7)
        self.has_place = PLACE in asked
        """The text of the link is to be looked up."""


class Answers:
    """What one descriptor has answered.

    ``is_whole``: nothing failed in a way that means something, nothing was longer than its room.
    """

    __slots__ = ("_questions", "_raw", "is_whole")

    def __init__(self, questions: Questions, raw: bytes, is_whole: bool) -> None:
        self._questions, self._raw, self.is_whole = questions, raw, is_whole

    def get(self, call: int, first: int = 0, second: int = 0) -> tuple[int, bytes] | None:
        """(result or -errno, bytes); None when it was not asked."""
        at, _ = self._questions.slots.get((call, first, second), (None, 0))
        if at is None:
            return None
        result, size = SLOT.unpack_from(self._raw, at)
        return result, self._raw[at + SLOT.size : at + SLOT.size + size]

    def are_those(self, before: "Answers | None") -> bool:
        """Whether all is as it was when the same was asked before."""
        if before is None or before._questions is not self._questions:
            return False
        return self.is_whole and before.is_whole and self._raw == before._raw

    def fills(self, call: int, first: int, second: int, size: int) -> bool:
        """Whether an answer takes all of its room, which is less than ``size``."""
        at, room = self._questions.slots.get((call, first, second), (None, 0))
        return at is not None and 0 < room < size and SLOT.unpack_from(self._raw, at)[1] >= room

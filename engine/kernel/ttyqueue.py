# SPDX-License-Identifier: Apache-2.0
"""What is queued in a pseudo terminal, by its master: taken out, and put in as it was.

Facts (probed on v6.18):
- The queues of a terminal cannot be peeked at: they are read, and written again at once. Only a
  kill of the engine in the instant between would lose what was queued.
- A program reads lines while its terminal is canonical: one by each read(2), an end-of-file
  as a read of nothing. A line that is not ended yet is had in raw mode only.
- Input is handled by a kernel thread, with the settings of that moment. That all of it has been
  handled is seen by a stop character behind it, which packet mode tells to poll(2).
- Output is stopped by a character (IXON) or by tcflow(3); poll(2) sees that it is. The second
  is told from the first by trying to go on.
- A status of packet mode that was not read yet is lost: setting the mode clears it.
- How much there is room for depends on how it is written: 13,824 bytes at once, 20,480 one by
  one, and most (21,504) in pieces of a whole buffer (drivers/tty/tty_buffer.c, TTY_BUFFER_PAGE).
- The slave that is opened here leaves the master hung up when it is the last one: as it was,
  if another had been open before.

Source: drivers/tty/n_tty.c, pty.c (v6.18); ioctl_tty(2).
"""

import errno
import fcntl
import os
import select
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torpor.engine.errors import KernelError
from torpor.engine.kind import NOTHING_QUEUED, Stopped, TerminalQueue

TCGETS2, TCSETS2, TIOCPKT, TIOCGPKT = 0x802C542A, 0x402C542B, 0x5420, 0x80045438
TIOCGPTPEER, TIOCGPTLCK, TIOCSPTLCK, TCXONC, FIONREAD = (
    0x5441, 0x80045439, 0x40045431, 0x540A, 0x541B,
)  # fmt: skip
TCOOFF, TCOON = 0, 1
TERMIOS2 = struct.Struct("<4IB19sII")
ICANON, IXON = 0x2, 0x400
VEOF, VTIME, VMIN, VSTART, VSTOP, VEOL, VEOL2 = 4, 5, 6, 8, 9, 11, 16
STEP_BYTES, PATIENCE_S, PAUSE_S = 1 << 16, 5.0, 0.0001
BUFFER_BYTES = 1792
HANDLED_BYTES = 4000
"""More than this is not handled before the program reads (N_TTY_BUF_SIZE is 4096)."""


def take(master: int, subject: str) -> TerminalQueue:
    """What is queued in both directions; it stays queued."""
    with _replaying(master, subject) as replay:
        idle = replay.is_raw and replay.flows() and not _ready(replay.slave, select.POLLIN)
        if idle and not _ready(master, select.POLLIN):
            return NOTHING_QUEUED
        lines, rest = replay.input()
        output = _read_all(master)
        queue = TerminalQueue(output=output, lines=lines, rest=rest, stopped=replay.go_on())
        replay.put(queue)
    return queue


def put(master: int, queue: TerminalQueue, subject: str) -> None:
    """Queue in a terminal with nothing queued what ``take`` gave."""
    with _replaying(master, subject) as replay:
        replay.put(queue)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay:
    """A terminal with a slave of ours, packet mode off."""

    master: int
    slave: int
    settings: bytes
    subject: str

    @property
    def is_raw(self) -> bool:
        return not TERMIOS2.unpack(self.settings)[3] & ICANON

    def flows(self) -> bool:
        """Whether what the program writes goes out."""
        return _ready(self.slave, select.POLLOUT)

    def input(self) -> tuple[tuple[bytes, ...], bytes]:
        """Lines as read(2) gives them, and what is no line."""
        if self.is_raw:
            return (), _read_all(self.slave)
        lines = []
        while (line := _read(self.slave)) is not None:
            lines.append(line)
        iflag, oflag, cflag, lflag, discipline, _, *speeds = TERMIOS2.unpack(self.settings)
        raw = TERMIOS2.pack(iflag, oflag, cflag, lflag & ~ICANON, discipline,
                            _characters({VMIN: 1}), *speeds)  # fmt: skip
        self._set(raw)
        return tuple(lines), _read_all(self.slave)

    def go_on(self) -> Stopped:
        """Have stopped output go on; how it was stopped. All output must have been read."""
        if self.flows():
            return Stopped.NO
        fcntl.ioctl(self.slave, TCXONC, TCOON)
        if self.flows():
            return Stopped.BY_CALL
        unused = _unused(b"", 3)
        self._set(self._handling(unused))
        self._await_flow(unused[1:2])
        return Stopped.BY_CHARACTER

    def put(self, queue: TerminalQueue) -> None:
        """Both directions, and whether output is stopped."""
        text = b"".join(queue.lines) + queue.rest
        unused = _unused(text, 3)
        end = self._line_ends()
        text = b"".join(_typed(line, end, unused[:1]) for line in queue.lines) + queue.rest
        if not text and not queue.output and queue.stopped is Stopped.NO:
            return
        self._set(self._handling(unused))
        _write_all(self.slave, queue.output, self.subject)
        _write_all(self.master, text[:HANDLED_BYTES], self.subject)
        self._await_flow(unused[2:3])
        if queue.stopped is not Stopped.BY_CHARACTER:
            self._await_flow(unused[1:2])
        if queue.stopped is Stopped.BY_CALL:
            fcntl.ioctl(self.slave, TCXONC, TCOOFF)
        self._set(self.settings)
        _write_all(self.master, text[HANDLED_BYTES:], self.subject)

    def _line_ends(self) -> bytes:
        characters = TERMIOS2.unpack(self.settings)[5]
        return b"\n" + bytes(characters[i] for i in (VEOL, VEOL2) if characters[i])

    def _handling(self, unused: bytes) -> bytes:
        """Settings with which bytes become what they were; ``unused``: end, start, stop."""
        _, _, cflag, lflag, discipline, characters, *speeds = TERMIOS2.unpack(self.settings)
        wanted = {VEOF: unused[0], VSTART: unused[1], VSTOP: unused[2], VMIN: 1}
        if lflag & ICANON:
            wanted |= {VEOL: characters[VEOL], VEOL2: characters[VEOL2]}
        else:
            wanted[VEOF] = 0
        return TERMIOS2.pack(IXON, 0, cflag, lflag & ICANON, discipline,
                             _characters(wanted), *speeds)  # fmt: skip

    def _set(self, settings: bytes) -> None:
        fcntl.ioctl(self.master, TCSETS2, settings)

    def _await_flow(self, character: bytes) -> None:
        """Type a start or stop character and wait until it was handled."""
        _set_number(self.master, TIOCPKT, 1)
        _write_all(self.master, character, self.subject)
        until_s = time.monotonic() + PATIENCE_S
        while not (handled := _ready(self.master, select.POLLPRI)) and time.monotonic() < until_s:
            time.sleep(PAUSE_S)  # nobody who polls for POLLPRI alone is woken
        _set_number(self.master, TIOCPKT, 0)
        if not handled:
            raise KernelError("the terminal does not handle what is typed", errno=errno.ETIMEDOUT,
                              subject=self.subject)  # fmt: skip


@contextmanager
def _replaying(master: int, subject: str) -> Iterator[_Replay]:
    """Every setting is as before at the end."""
    try:
        settings = fcntl.ioctl(master, TCGETS2, bytes(TERMIOS2.size))
        packets, locked = _number(master, TIOCGPKT), _number(master, TIOCGPTLCK)
        _set_number(master, TIOCSPTLCK, 0)
        _set_number(master, TIOCPKT, 0)
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        slave = fcntl.ioctl(master, TIOCGPTPEER, flags)
        try:
            yield _Replay(master=master, slave=slave, settings=settings, subject=subject)
        finally:
            fcntl.ioctl(master, TCSETS2, settings)
            os.close(slave)
            _set_number(master, TIOCPKT, packets)
            _set_number(master, TIOCSPTLCK, locked)
    except OSError as error:
        raise KernelError("cannot read what is queued in the terminal", errno=error.errno or 0,
                          subject=subject) from error  # fmt: skip


def _typed(line: bytes, ends: bytes, end_of_file: bytes) -> bytes:
    return line if line and line[-1] in ends else line + end_of_file


def _unused(text: bytes, count: int) -> bytes:
    """Characters that do not occur in a text, no line end among them."""
    found = [c for c in range(1, 256) if c not in text and c not in b"\r\n"]
    return bytes(found[:count])


def _characters(wanted: dict[int, int]) -> bytes:
    return bytes(wanted.get(i, 0) for i in range(19))


def _ready(fd: int, events: int) -> bool:
    waiting = select.poll()
    waiting.register(fd, events)
    return any(found & events for _, found in waiting.poll(0))


def _read(fd: int) -> bytes | None:
    """None when there is nothing; b"" is an end of file."""
    try:
        return os.read(fd, STEP_BYTES)
    except BlockingIOError:
        return None


def _read_all(fd: int) -> bytes:
    """Of a master, or of a slave in raw mode."""
    found = bytearray()
    while _ready(fd, select.POLLIN) and (piece := _read(fd)):
        found += piece
    return bytes(found)


def _write_all(fd: int, content: bytes, subject: str) -> None:
    """What is written is moved on by a kernel thread, which may take a while to make room."""
    until_s = time.monotonic() + PATIENCE_S
    while content:
        try:
            content = content[os.write(fd, content[:BUFFER_BYTES]) :]
        except BlockingIOError as error:
            if time.monotonic() > until_s:
                raise KernelError(
                    "what was queued does not go back",
                    errno=errno.EAGAIN,
                    subject=subject,
                    cause=f"{len(content)} bytes",
                ) from error
            time.sleep(PAUSE_S)


def _number(fd: int, request: int) -> int:
    (value,) = struct.unpack("<i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)


def _set_number(fd: int, request: int, value: int) -> None:
    fcntl.ioctl(fd, request, struct.pack("<i", value))


__all__: Sequence[str] = ("put", "take")

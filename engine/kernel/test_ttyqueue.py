# SPDX-License-Identifier: Apache-2.0
"""The queues of live pseudo terminals."""

import fcntl
import os
import select
import struct
import termios

import pytest

from torpor.engine.kernel import ttyqueue
from torpor.engine.kernel.ttyqueue import TIOCGPKT, TIOCGPTPEER, TIOCPKT, TIOCSPTLCK
from torpor.engine.kind import Stopped, TerminalQueue

RAW = [0, 0, termios.CS8 | termios.CREAD, 0, termios.B38400, termios.B38400, [b"\0"] * 32]


@pytest.fixture
def pty():
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    yield master, slave
    os.close(slave)
    os.close(master)


def read(fd, count=1):
    return [os.read(fd, 1 << 16) for _ in range(count)]


def is_ready(fd, events):
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))


def test_nothing_queued_changes_nothing(pty):
    master, slave = pty
    before = termios.tcgetattr(slave)
    assert ttyqueue.take(master, "it") == TerminalQueue()
    assert termios.tcgetattr(slave) == before
    assert not is_ready(master, select.POLLIN)
    assert not is_ready(slave, select.POLLIN)


def test_lines_ends_of_file_and_the_rest(pty):
    master, slave = pty
    os.write(slave, b"shown\n")
    os.write(master, b"one\ntwo\x04\x04lit\x16\x03eral\nunfinished")
    queue = ttyqueue.take(master, "it")
    assert queue.lines == (b"one\n", b"two", b"", b"lit\x03eral\n")
    assert queue.rest == b"unfinished"
    assert queue.output.startswith(b"shown\r\none\r\n")
    assert ttyqueue.take(master, "it") == queue
    assert read(master) == [queue.output]
    assert read(slave, 4) == list(queue.lines)
    with pytest.raises(BlockingIOError):
        os.read(slave, 100)
    os.write(master, b" line\n")
    assert is_ready(slave, select.POLLIN)
    assert read(slave) == [b"unfinished line\n"]


def test_raw_bytes_of_all_sorts_in_packet_mode(pty):
    master, slave = pty
    termios.tcsetattr(slave, termios.TCSANOW, RAW)
    every = bytes(range(250)) * 12
    os.write(master, every)
    os.write(slave, every)
    fcntl.ioctl(master, TIOCPKT, struct.pack("i", 1))
    queue = ttyqueue.take(master, "it")
    assert (queue.output, queue.lines, queue.rest) == (every, (), every)
    assert struct.unpack("i", fcntl.ioctl(master, TIOCGPKT, bytes(4))) == (1,)
    assert read(master) == [b"\0" + every]
    assert read(slave) == [every]


@pytest.mark.parametrize("how", [Stopped.BY_CALL, Stopped.BY_CHARACTER])
def test_stopped_output_stays_stopped(pty, how):
    master, slave = pty
    os.write(slave, b"before\n")
    if how is Stopped.BY_CALL:
        termios.tcflow(slave, termios.TCOOFF)
    else:
        os.write(master, b"\x13")
        while is_ready(slave, select.POLLOUT):
            pass
    queue = ttyqueue.take(master, "it")
    assert queue == TerminalQueue(output=b"before\r\n", stopped=how)
    assert not is_ready(slave, select.POLLOUT)
    os.write(master, b"\x11")
    if how is Stopped.BY_CALL:
        assert not is_ready(slave, select.POLLOUT)
        termios.tcflow(slave, termios.TCOON)
    poll = select.poll()
    poll.register(slave, select.POLLOUT)
    assert poll.poll(5000)


def test_put_into_a_fresh_terminal(pty):
    master, slave = pty
    queue = TerminalQueue(output=b"out\n", lines=(b"a\n", b""), rest=b"b")
    ttyqueue.put(master, queue, "it")
    assert ttyqueue.take(master, "it") == queue
    assert read(slave, 2) == [b"a\n", b""]


def test_a_terminal_that_takes_no_more(pty):
    """What is behind the first 4 KiB has room only when a kernel thread has moved those on."""
    master, slave = pty
    termios.tcsetattr(slave, termios.TCSANOW, RAW)
    written = bytearray()
    while True:
        try:
            written += bytes(range(256))[: os.write(slave, bytes(range(256)))]
        except BlockingIOError:
            break
    for _ in range(3):
        assert ttyqueue.take(master, "it").output == written

# SPDX-License-Identifier: Apache-2.0
"""Questions in one go: of our own descriptors."""

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
from contextlib import contextmanager

from torpor.engine import native
from torpor.engine.asking import (
    NAMES,
    PLACE,
    POLL,
    Call,
    Questions,
    epoll_target,
    ioctl,
    option,
    pieces_of,
    pipe_content,
)
from torpor.engine.asking import fcntl as command

FIONREAD = 0x541B
SO_ATTACH_FILTER = 26


@contextmanager
def ourselves():
    pidfd, root = os.pidfd_open(os.getpid()), os.open("/", os.O_PATH)
    try:
        yield pidfd, root
    finally:
        os.close(pidfd)
        os.close(root)


def ask(*asked):
    with ourselves() as (pidfd, root):
        return native.ask_fds(os.getpid(), pidfd, root, asked)


def test_each_gets_its_own_answers():
    one, other = socket.socketpair()
    other.send(b"four")
    options = Questions(option(1, socket.SO_TYPE), *NAMES, ioctl(FIONREAD), POLL)
    flags = Questions(command(fcntl.F_GETFL))
    with one, other:
        first, second = ask((one.fileno(), options, b""), (other.fileno(), flags, b""))
    assert first.is_whole
    assert first.get(Call.OPTION, 1, socket.SO_TYPE) == (4, struct.pack("<i", socket.SOCK_STREAM))
    assert first.get(Call.SOCKNAME) == (0, struct.pack("<H", socket.AF_UNIX))
    assert first.get(Call.IOCTL, FIONREAD) == (0, struct.pack("<i", 4))
    assert first.get(Call.POLL)[0] & 1
    assert first.get(Call.FCNTL, fcntl.F_GETFL) is None
    assert second.get(Call.FCNTL, fcntl.F_GETFL)[0] & os.O_ACCMODE == os.O_RDWR


def test_what_a_path_leads_to(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with file.open() as opened:
        (answers,) = ask((opened.fileno(), Questions(PLACE), os.fsencode(file)))
        status = os.fstat(opened.fileno())
        assert answers.get(Call.PLACE)[1] == struct.pack("<QQ", status.st_dev, status.st_ino)
        file.unlink()
        (answers,) = ask((opened.fileno(), Questions(PLACE), os.fsencode(file)))
        assert not answers.is_whole


def test_an_option_that_is_not_known_is_an_answer_and_a_closed_descriptor_is_none():
    with socket.socket() as one:
        known, gone = ask(
            (one.fileno(), Questions(option(1, 9999)), b""),
            (999_999, Questions(POLL), b""),
        )
    assert known.is_whole
    assert known.get(Call.OPTION, 1, 9999)[0] < 0
    assert not gone.is_whole


def test_a_filter_that_is_there_is_no_whole_answer():
    """Without room it is only said how long it is."""
    asked = Questions(option(1, SO_ATTACH_FILTER, 0))
    all_pass = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0xFFFF))
    program = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(all_pass))
    one, other = socket.socketpair()
    with one, other:
        (before,) = ask((one.fileno(), asked, b""))
        one.setsockopt(1, SO_ATTACH_FILTER, program)
        (after,) = ask((one.fileno(), asked, b""))
    assert before.is_whole
    assert before.get(Call.OPTION, 1, SO_ATTACH_FILTER) == (0, b"")
    assert not after.is_whole


def test_equal_places_are_one_description():
    with open("/dev/null") as one, open("/dev/null") as other:
        copy = os.dup(one.fileno())
        pids = [os.getpid()] * 3
        first, second, third = native.order_files(pids, [one.fileno(), other.fileno(), copy])
        os.close(copy)
    assert first == third != second


def pieces(flags, written):
    """What a pipe with so much in it answers, twice; it is still there then."""
    reader, writer = os.pipe2(flags)
    asked = Questions(pipe_content(64))
    try:
        for piece in written:
            os.write(writer, piece)
        first, again = ask((reader, asked, b""), (reader, asked, b""))
        assert first.are_those(again)
        (of_writer,) = ask((writer, asked, b""))
        assert of_writer.is_whole
        assert of_writer.get(Call.PIPE)[0] in ((-errno.EBADF, -errno.ERANGE) if written else (0,))
        for piece in written:
            assert os.read(reader, len(piece)) == piece
        result, raw = first.get(Call.PIPE)
        return result, pieces_of(raw)
    finally:
        os.close(reader)
        os.close(writer)


def test_what_is_queued_in_pipes():
    assert pieces(0, []) == (0, [])
    assert pieces(0, [b"one", b"two"]) == (6, [b"onetwo"])
    assert pieces(os.O_DIRECT, [b"one", b"two"]) == (6, [b"one", b"two"])
    assert pieces(0, [b"x" * 60]) == (60, [b"x" * 60])


def test_more_than_there_is_room_for_is_not_told():
    for flags, written in ((0, [b"x" * 61]), (0, [b"x" * 100]), (os.O_DIRECT, [b"x" * 6] * 10)):
        assert pieces(flags, written) == (-errno.ERANGE, [])


def test_pipes_side_by_side():
    """A copy serves many, also after one that it could not take."""
    ends = [os.pipe2(os.O_DIRECT) for _ in range(300)]
    asked = Questions(pipe_content(64))
    try:
        for i, (_, writer) in enumerate(ends):
            for _ in range(1 if i % 3 else 14):
                os.write(writer, b"%d" % i)
        told = ask(*((reader, asked, b"") for reader, _ in ends))
        for i, one in enumerate(told):
            result, raw = one.get(Call.PIPE)
            assert (pieces_of(raw) == [b"%d" % i]) if i % 3 else (result == -errno.ERANGE)
    finally:
        for pair in ends:
            os.close(pair[0])
            os.close(pair[1])


def test_whether_targets_of_an_epoll_are_at_their_numbers():
    """Twice under one number, which the second one has now."""
    first, second = os.eventfd(0), os.eventfd(0)
    other = os.dup(first)
    with select.epoll() as epoll:
        epoll.register(first, select.EPOLLIN)
        asked = Questions(epoll_target(first, 0), epoll_target(first, 1))

        def told():
            (answers,) = ask((epoll.fileno(), asked, b""))
            assert answers.is_whole
            return [answers.get(Call.TARGET, first, i)[0] for i in range(2)]

        assert told() == [0, 1]
        os.dup2(second, first)
        assert told() == [1, 1]
        epoll.register(first, select.EPOLLIN)
        assert sorted(told()) == [0, 1]
        os.close(first)
        assert told() == [1, 1]
    os.close(second)
    os.close(other)

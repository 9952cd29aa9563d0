# SPDX-License-Identifier: Apache-2.0
"""Questions in one go: of our own descriptors."""

import ctypes
import fcntl
import os
import socket
import struct
from contextlib import contextmanager

from torpor.engine import native
from torpor.engine.asking import NAMES, PLACE, POLL, Call, Questions, ioctl, option
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
        return native.ask_fds(pidfd, root, asked)


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

# SPDX-License-Identifier: Apache-2.0
"""Descriptors that are handed over a socket."""

import os
import socket

import pytest

from torpor.engine.errors import BadImage
from torpor.engine.lazy import handing


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_one_after_the_other_and_the_end(pair):
    ours, theirs = pair
    ends = os.pipe()
    for pid, fd in zip((7, 1 << 22), ends, strict=True):
        handing.hand(ours, pid, fd)
    handing.end(ours)
    for pid, fd in zip((7, 1 << 22), ends, strict=True):
        got = handing.receive(theirs)
        assert got is not None
        assert got.pid == pid
        assert os.path.sameopenfile(got.fd, fd)
        assert not os.get_inheritable(got.fd)
        os.close(got.fd)
        os.close(fd)
    assert handing.receive(theirs) is None


@pytest.mark.parametrize("said", [b"", b"FT", handing.PID.pack(7), handing.PID.pack(7) + b"\0"])
def test_an_end_that_was_not_said(pair, said):
    ours, theirs = pair
    ours.sendall(said)
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(BadImage, match="did not come to its end"):
        handing.receive(theirs)


def test_a_descriptor_with_another_mark_is_not_kept(pair):
    ours, theirs = pair
    before = set(os.listdir("/proc/self/fd"))
    ours.sendall(handing.PID.pack(7))
    socket.send_fds(ours, [b"\1"], [ours.fileno()])
    with pytest.raises(BadImage):
        handing.receive(theirs)
    assert set(os.listdir("/proc/self/fd")) == before

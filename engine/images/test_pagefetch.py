# SPDX-License-Identifier: Apache-2.0
"""Pages that are asked for, over a connection, and what goes wrong there."""

import socket
from contextlib import closing
from threading import Thread

import pytest

from torpor.engine.errors import BadImage, Error, KernelError, Timeout
from torpor.engine.images.pagefetch import GET, Fetcher, answer, notice_death
from torpor.engine.images.pages import PAGE_BYTES
from torpor.engine.images.pageserver import ADD, CLOSE, REQUEST


class Memory:
    """Pages of a pid; each is full of the number of its page."""

    must_be_wanted = True

    def read(self, pid, address, size):
        if pid != 7:
            raise BadImage("no such task")
        first = address // PAGE_BYTES
        return b"".join(bytes([n]) * PAGE_BYTES for n in range(first, first + size // PAGE_BYTES))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        yield ours, theirs


MEMORY = Memory()


def served(pair, pool=MEMORY):
    """In a thread; what becomes of it is in the list."""
    found = []

    def run():
        try:
            found.append(answer(pair[1], pool))
        except Error as error:
            found.append(error)
        pair[1].close()

    thread = Thread(target=run)
    thread.start()
    return thread, found


def test_pages_come_and_the_end_is_confirmed(pair):
    thread, found = served(pair)
    fetcher = Fetcher(pair[0])
    assert fetcher.get(7, 5 * PAGE_BYTES, 2) == b"\5" * PAGE_BYTES + b"\6" * PAGE_BYTES
    assert fetcher.get(7, 0, 1) == bytes(PAGE_BYTES)
    fetcher.end()
    thread.join()
    assert (found[0].requests, found[0].size_bytes) == (2, 3 * PAGE_BYTES)


def test_one_who_hangs_up_has_not_got_all(pair):
    thread, found = served(pair)
    Fetcher(pair[0]).get(7, 0, 1)
    pair[0].close()
    thread.join()
    assert isinstance(found[0], KernelError)
    assert "gone before it had all" in str(found[0])


def test_one_who_ends_before_it_had_any_gave_up(pair):
    thread, found = served(pair)
    with pytest.raises(KernelError, match="did not confirm"):
        Fetcher(pair[0]).end()
    thread.join()
    assert "gave up" in str(found[0])


def test_where_there_is_nothing_to_have_the_end_is_good(pair):
    pool = Memory()
    pool.must_be_wanted = False
    thread, found = served(pair, pool)
    Fetcher(pair[0]).end()
    thread.join()
    assert found[0].requests == 0


@pytest.mark.parametrize(
    "request_",
    [(GET, 0, 0, 0, 0, 7), (GET, 0, 0, 1, 5, 7), (GET, 0, 0, 1 << 40, 0, 7), (9, 0, 0, 1, 0, 7),
     (GET, 0, 0, 1, 0, 8)],
)  # fmt: skip
def test_nonsense_is_not_answered(pair, request_):
    thread, found = served(pair)
    pair[0].sendall(REQUEST.pack(*request_))
    assert pair[0].recv(1) == b""
    thread.join()
    assert isinstance(found[0], BadImage)


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (b"", KernelError),
        (bytes(REQUEST.size), BadImage),
        (REQUEST.pack(ADD, 4, 0, 2, 0, 7), BadImage),
        (REQUEST.pack(ADD, 4, 0, 1, 4096, 7), BadImage),
        (REQUEST.pack(ADD, 4, 0, 1, 0, 7) + b"half", KernelError),
        (REQUEST.pack(CLOSE, 0, 0, 0, 0, 0), BadImage),
    ],
)
def test_an_answer_that_is_none(pair, reply, what):
    pair[1].sendall(reply)
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(what):
        Fetcher(pair[0]).get(7, 0, 1)


def test_a_server_that_says_nothing(pair):
    notice_death(pair[0], patience_s=0.05)
    with pytest.raises(Timeout):
        Fetcher(pair[0]).get(7, 0, 1)

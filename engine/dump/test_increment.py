# SPDX-License-Identifier: Apache-2.0
import os
from array import array

import pytest

from torpor.engine import native
from torpor.engine.dump.buffers import Slice
from torpor.engine.dump.increment import pieces
from torpor.engine.images.pages import PageFlags
from torpor.engine.images.parents import Stored

PAGE = 4096
AT = 0x40000


@pytest.fixture
def taken():
    buffer = native.Buffer(8 * PAGE)
    for i, letter in enumerate(b"abcdef"):
        buffer.view((i + 1) * PAGE, PAGE)[:] = bytes([letter]) * PAGE
    yield Slice(buffer=buffer, start=PAGE, size_bytes=6 * PAGE)
    buffer.close()


def stored(text: bytes, vaddr: int) -> Stored:
    fd = os.memfd_create("stored")
    os.write(fd, b"".join(bytes([letter]) * PAGE for letter in text))
    return Stored(vaddr=vaddr, size_bytes=len(text) * PAGE, level=0, fd=fd, offset=0)


def told(runs, shift, taken, files):
    return [
        ((p.run.vaddr - AT) // PAGE, p.run.page_count, p.run.flags, p.start // PAGE)
        for p in pieces(array("Q", runs), shift, taken, files)
    ]


def test_nothing_is_stored(taken):
    runs = [AT, 2 * PAGE, AT + 8 * PAGE, 4 * PAGE]
    assert told(runs, 0, taken, []) == [
        (0, 2, PageFlags.PRESENT, 0),
        (8, 4, PageFlags.PRESENT, 2),
    ]


def test_pages_alike_are_left_out(taken):
    files = [stored(b"axc", AT), stored(b"yef", AT + 3 * PAGE)]
    assert told([AT, 6 * PAGE], 0, taken, files) == [
        (0, 1, PageFlags.PARENT, 0),
        (1, 1, PageFlags.PRESENT, 1),
        (2, 1, PageFlags.PARENT, 2),
        (3, 1, PageFlags.PRESENT, 3),
        (4, 2, PageFlags.PARENT, 4),
    ]


def test_addresses_of_shared_memory_are_its_own(taken):
    files = [stored(b"ab", AT), stored(b"cd", AT + 8 * PAGE)]
    assert told([AT + PAGE, 2 * PAGE, AT + 9 * PAGE, 4 * PAGE], PAGE, taken, files) == [
        (0, 2, PageFlags.PARENT, 0),
        (8, 2, PageFlags.PARENT, 2),
        (10, 2, PageFlags.PRESENT, 4),
    ]
    for one in files:
        os.close(one.fd)

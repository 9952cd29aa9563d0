# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from torpor.engine.lazy.missing import Missing
from torpor.engine.lazy.serve import AHEAD_BYTES, PAGE, Space, _Loop

START, SIZE = 1 << 30, 1 << 20


class Source:
    """Remembers what was copied."""

    chunk_bytes = SIZE

    def __init__(self):
        self.copied = []

    def copy(self, uffd, target, start, size):
        self.copied.append((target - START, size))
        return size, 0


@pytest.fixture
def space():
    reader, writer = os.pipe()
    missing = Missing.of([(START, START + SIZE, 0)])
    yield Space(fd=reader, missing=missing, source=Source())
    os.close(reader)
    os.close(writer)


def test_a_page_here_and_there_comes_alone_and_more_when_nobody_waits(space):
    loop = _Loop([space], None)
    far = 64 * PAGE
    for at in (0, far):
        loop._answer(space, START + at)
    assert space.source.copied == [(0, PAGE), (far, PAGE)]
    loop._fill_some(space)
    assert space.source.copied[2:] == [(far + PAGE, AHEAD_BYTES)]


def test_where_memory_is_read_in_order_more_comes_at_once(space):
    loop = _Loop([space], None)
    for at in (0, PAGE):
        loop._answer(space, START + at)
    assert space.source.copied == [(0, PAGE), (PAGE, AHEAD_BYTES)]

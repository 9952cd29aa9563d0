# SPDX-License-Identifier: Apache-2.0
"""Pages of our own mappings, as PAGEMAP_SCAN sees them."""

import ctypes
import mmap
import os
from array import array

import pytest

from torpor.engine.kernel import pagemap

PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)
MADV_GUARD_INSTALL = 102


@pytest.fixture
def fd():
    fd = pagemap.open_pagemap(os.getpid())
    yield fd
    os.close(fd)


def address_of(room):
    return ctypes.addressof(ctypes.c_char.from_buffer(room))


def test_only_written_private_pages_count(fd):
    room = mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(room)
    assert room[20 * PAGE] == 0  # maps the zero page
    room[3 * PAGE] = 1
    room[4 * PAGE] = 1
    room[9 * PAGE] = 1
    runs = pagemap.private_runs(fd, [(start, start + len(room))])
    assert list(runs) == [start + 3 * PAGE, 2 * PAGE, start + 9 * PAGE, PAGE]


def test_untouched_pages_of_a_private_file_mapping_do_not_count(fd, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4 * PAGE)
    with path.open("r+b") as file:
        room = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    start = address_of(room)
    assert room[0] == room[PAGE]
    room[2 * PAGE] = 1
    assert list(pagemap.private_runs(fd, [(start, start + len(room))])) == [start + 2 * PAGE, PAGE]


def test_shared_pages_are_nobodys_own(fd):
    room = mmap.mmap(-1, 8 * PAGE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    start = address_of(room)
    room[5 * PAGE] = 1
    assert list(pagemap.private_runs(fd, [(start, start + len(room))])) == []


def test_more_runs_than_one_call_returns(fd):
    count = 10000
    room = mmap.mmap(-1, 2 * count * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(room)
    for page in range(0, 2 * count, 2):
        room[page * PAGE] = 1
    runs = pagemap.private_runs(fd, [(start, start + len(room))])
    assert len(runs) == 2 * count
    assert list(runs[::2]) == list(range(start, start + len(room), 2 * PAGE))


def test_guard_pages_are_not_content(fd):
    room = mmap.mmap(-1, 8 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(room)
    room[0] = 1
    if LIBC.madvise(ctypes.c_void_p(start + 2 * PAGE), PAGE, MADV_GUARD_INSTALL):
        pytest.skip("this kernel has no guard pages (Linux 6.13)")
    assert list(pagemap.private_runs(fd, [(start, start + len(room))])) == [start, PAGE]
    assert list(pagemap.guard_runs(fd, start, start + len(room))) == [start + 2 * PAGE, PAGE]


def test_near_mappings_are_looked_at_together(fd, monkeypatch):
    room = mmap.mmap(-1, 16 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = address_of(room)
    for page in range(3, 13):
        room[page * PAGE] = 1
    ranges = [
        (start + first * PAGE, start + last * PAGE) for first, last in ((0, 5), (6, 8), (12, 16))
    ]
    wanted = [start + 3 * PAGE, 2 * PAGE, start + 6 * PAGE, 2 * PAGE, start + 12 * PAGE, PAGE]
    assert list(pagemap.private_runs(fd, ranges)) == wanted
    monkeypatch.setattr(pagemap, "NEAR", 0)
    assert list(pagemap.private_runs(fd, ranges)) == wanted
    assert list(pagemap.private_runs(fd, [])) == []


@pytest.mark.parametrize(
    ("runs", "left"),
    [
        ([], []),
        ([0, 100], [10, 10, 30, 10]),
        ([15, 10, 35, 100], [15, 5, 35, 5]),
        ([0, 5, 20, 10, 50, 5], []),
        ([12, 2, 14, 2], [12, 2, 14, 2]),
    ],
)
def test_cut(runs, left):
    assert list(pagemap.cut(array("Q", runs), [(10, 20), (30, 40)])) == left

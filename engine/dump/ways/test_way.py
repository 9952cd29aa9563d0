# SPDX-License-Identifier: Apache-2.0
"""Sources: where the bytes of a part are, cut anywhere."""

import os
from array import array

import pytest

from torpor.engine import native
from torpor.engine.dump.ways.way import Content, Part, Runs
from torpor.engine.errors import KernelError, Vanished
from torpor.engine.native import pages

PAGE = 4096
RUNS = array("Q", [0x1000, 2 * PAGE, 0x9000, PAGE, 0x20000, 3 * PAGE])


@pytest.mark.parametrize(
    ("start", "size", "found"),
    [
        (0, 6 * PAGE, [(0x1000, 2 * PAGE), (0x9000, PAGE), (0x20000, 3 * PAGE)]),
        (PAGE, PAGE, [(0x2000, PAGE)]),
        (PAGE, 3 * PAGE, [(0x2000, PAGE), (0x9000, PAGE), (0x20000, PAGE)]),
        (2 * PAGE, PAGE, [(0x9000, PAGE)]),
        (5 * PAGE, PAGE, [(0x22000, PAGE)]),
    ],
)
def test_runs_are_cut(start, size, found):
    words = Runs(7, RUNS).extents(start, size)
    assert [(words[i + 1], words[i + 2]) for i in range(0, len(words), 3)] == found
    assert set(words[::3]) == {7}


@pytest.fixture
def file():
    fd = os.memfd_create("pages")
    yield fd
    os.close(fd)


def test_extents_of_all_origins_make_one_file(file):
    ours = Content(b"a" * PAGE)
    source = os.memfd_create("source")
    os.write(source, b"c" * 3 * PAGE)
    kept = b"b" * 2 * PAGE
    task = Runs(native.of_task(os.getpid()), array("Q", [_address(kept), 2 * PAGE]))
    other = Runs(native.of_file(source), array("Q", [PAGE, 2 * PAGE]))
    extents = ours.extents(0, PAGE) + task.extents(PAGE, PAGE) + other.extents(0, 2 * PAGE)
    progress = native.PagesProgress()
    digest = native.write_pages(extents, file, progress)
    assert os.pread(file, 5 * PAGE, 0) == b"a" * PAGE + b"b" * PAGE + b"c" * 2 * PAGE
    assert digest == native.digest_file(file)
    assert progress.written_bytes == 4 * PAGE
    assert native.read_pages(extents, PAGE - 1, 2) == b"ab"
    same = bytearray(4)
    os.pwrite(file, b"x", 2 * PAGE)
    native.same_pages(extents, file, array("Q", [PAGE, 3 * PAGE, PAGE]), same)
    assert same == bytes([0, 1, 0, 1])
    os.close(source)


def test_progress_is_told_between_steps_and_the_digest_is_that_of_all(file, monkeypatch):
    monkeypatch.setattr(pages, "STEP", 1 << 20)
    content = Content(bytes(range(256)) * (10 << 10))
    told = []
    progress = native.PagesProgress(told.append)
    digest = native.write_pages(content.extents(0, len(content.data)), file, progress)
    assert told == [1 << 20, 2 << 20, 5 << 19]
    assert os.pread(file, 5 << 19, 0) == content.data
    assert digest == native.digest_file(file)


def _address(data: bytes) -> int:
    return native.of_bytes(data, 0, len(data))[1]


def test_what_cannot_be_read_is_gone_and_what_cannot_be_written_an_error(file):
    nowhere = Runs(native.of_task(os.getpid()), array("Q", [PAGE, PAGE]))
    with pytest.raises(Vanished):
        native.write_pages(nowhere.extents(0, PAGE), file, native.PagesProgress())
    content = Content(b"a" * PAGE)
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(KernelError, match="pwrite"):
        native.write_pages(content.extents(0, PAGE), full, native.PagesProgress())
    os.close(full)


def test_a_part_without_bytes_needs_no_source():
    assert len(Part(pid=1).extents(0, 0)) == 0

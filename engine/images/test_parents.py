# SPDX-License-Identifier: Apache-2.0
"""Chains of dumps: where pages are, and taking those away that a later dump has."""

import os
from pathlib import Path

import pytest

from torpor.engine.errors import BadImage, Error
from torpor.engine.images.dedup import clear, dedup
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.inventory import write_inventory
from torpor.engine.images.pages import PAGE_BYTES, PageFlags, PageRun, write_pages
from torpor.engine.images.parents import Chain
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.writing import NewImageDirectory

IDS = pb.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1)
BASE = 0x10000


def level(path: Path, letters: str, parent: str = "") -> Path:
    """A dump of one task: a letter is a page of that letter, `-` one of the parent's, ` ` none."""
    runs, data = [], []
    for i, letter in enumerate(letters):
        if letter != " ":
            flags = PageFlags.PARENT if letter == "-" else PageFlags.PRESENT
            runs.append(PageRun(vaddr=BASE + i * PAGE_BYTES, page_count=1, flags=flags))
        if letter not in "- ":
            data.append(letter.encode() * PAGE_BYTES)
    with NewImageDirectory.create(path) as new:
        write_inventory(new, root_ids=IDS)
        if parent:
            new.link_parent(parent)
        write_pages(new, "pagemap-7", 1, runs, data)
        new.finish(durable=False)
    return path


def letters(path: Path, **options) -> str:
    """What a chain has, as `level` takes it."""
    with ImageDirectory.open(path) as images, Chain(images, **options) as chain:
        runs, fd = chain.merged("pagemap-7")
        pages = {
            run.run.vaddr + at: os.pread(fd, 1, run.offset + at).decode()
            for run in runs
            for at in range(0, run.run.size_bytes, PAGE_BYTES)
        }
        os.close(fd)
    count = (max(pages) - BASE) // PAGE_BYTES + 1
    return "".join(pages.get(BASE + i * PAGE_BYTES, " ") for i in range(count))


@pytest.mark.parametrize("parent", [".", "../0", "parent", "../none", "/"])
def test_parents_that_lead_nowhere(tmp_path, parent):
    level(tmp_path / "1", "-", "../0")
    level(tmp_path / "0", "A-", parent)
    before = len(os.listdir("/proc/self/fd"))
    with ImageDirectory.open(tmp_path / "1") as images, Chain(images) as chain:
        with pytest.raises(Error):
            chain.merged("pagemap-7")
        assert len(chain.levels) < 4
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def chain(tmp_path):
    level(tmp_path / "0", "abcdef")
    level(tmp_path / "1", "A---E- G", "../0")
    return level(tmp_path / "2", "-B- --  ", "../1")


def test_pages_are_found_wherever_they_are(chain):
    assert letters(chain) == "ABc Ef"


def test_a_page_that_nobody_has(tmp_path):
    level(tmp_path / "0", "ab")
    level(tmp_path / "1", "---", "../0")
    with pytest.raises(BadImage, match="has them not"):
        letters(tmp_path / "1")


def test_a_link_that_is_missing_or_leads_nowhere(chain):
    (chain / "parent").unlink()
    with pytest.raises(BadImage, match="no link parent"):
        letters(chain)
    (chain / "parent").symlink_to("../gone")
    with pytest.raises(Exception, match="gone"):
        letters(chain)


def test_a_chain_without_an_end(tmp_path):
    level(tmp_path / "0", "-", ".")
    with pytest.raises((BadImage, RecursionError)):
        letters(tmp_path / "0")


def test_what_a_later_dump_has_is_taken_from_the_earlier(chain):
    before = (chain.parent / "0" / "pages-1.img").stat()
    with ImageDirectory.open(chain, verify=Verify.NOTHING) as images:
        assert dedup(images) == 3 * PAGE_BYTES
    after = (chain.parent / "0" / "pages-1.img").stat()
    assert after.st_size == before.st_size
    assert (chain.parent / "0" / "pages-1.img").read_bytes()[:PAGE_BYTES] == bytes(PAGE_BYTES)
    assert letters(chain) == "ABc Ef"
    for name in ("0", "1", "2"):
        ImageDirectory.open(chain.parent / name).close()


def test_without_a_parent_there_is_nothing_to_take(tmp_path):
    with ImageDirectory.open(level(tmp_path / "0", "a")) as images:
        with pytest.raises(BadImage, match="no parent"):
            dedup(images)
        clear(images)
    assert (tmp_path / "0" / "pages-1.img").read_bytes() == bytes(PAGE_BYTES)


def test_a_directory_that_is_used_again_has_no_old_parent(chain):
    with NewImageDirectory.create(chain, replace=True) as new:
        write_inventory(new, root_ids=IDS)
        new.finish(durable=False)
    assert not os.path.lexists(chain / "parent")
    assert not (chain / "torpor.new").exists()


def test_spare_images_are_added_to(chain):
    """One file of an earlier dump gets the others' pages; the youngest stays as it is."""
    before = letters(chain)
    files = [chain.parent / str(number) / "pages-1.img" for number in range(3)]
    old = [path.read_bytes() for path in files]
    assert letters(chain, spare=True) == before
    new = [path.read_bytes() for path in files]
    assert new[2] == old[2]
    assert all(now.startswith(then) for now, then in zip(new, old, strict=True))
    assert [len(now) > len(then) for now, then in zip(new, old, strict=True)].count(True) == 1

# SPDX-License-Identifier: Apache-2.0
"""Pagemaps: round trips, and runs that make no sense."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor.engine.errors import BadImage, Bug
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.inventory import write_inventory
from torpor.engine.images.pages import (
    ADDRESS_END,
    PAGE_BYTES,
    PageFlags,
    PageRun,
    open_pages,
    read_pagemap,
    write_pagemap,
    write_pages,
)
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.writing import NewImageDirectory

IDS = pb.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1)


def begin(path: Path) -> NewImageDirectory:
    new = NewImageDirectory.create(path / "images", replace=True)
    write_inventory(new, root_ids=IDS)
    return new


@st.composite
def run_lists(draw):
    runs, address = [], 0
    for gap, count, flags in draw(
        st.lists(
            st.tuples(
                st.integers(0, 1 << 20),
                st.integers(1, 4),
                st.sampled_from([PageFlags.PRESENT, PageFlags.PARENT, PageFlags.LAZY]),
            ),
            max_size=6,
        )
    ):
        run = PageRun(vaddr=address + gap * PAGE_BYTES, page_count=count, flags=flags)
        runs.append(run)
        address = run.end
    return runs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(run_lists())
def test_runs_come_back_with_their_bytes(tmp_path: Path, runs: list[PageRun]):
    present = [run for run in runs if run.flags & PageFlags.PRESENT]
    data = [bytes([index + 1]) * run.size_bytes for index, run in enumerate(present)]
    with begin(tmp_path) as new:
        write_pages(new, "pagemap-5", 3, runs, data)
        new.finish(durable=False)
    with ImageDirectory.open(tmp_path / "images") as images:
        pagemap = read_pagemap(images, "pagemap-5")
        assert pagemap.runs == tuple(runs)
        assert pagemap.pages_name == "pages-3"
        fd = open_pages(images, pagemap)
        for located in pagemap.located():
            if located.offset is None:
                assert located.run not in present
            else:
                found = os.pread(fd, located.run.size_bytes, located.offset)
                assert found == data[present.index(located.run)]
        os.close(fd)


@pytest.mark.parametrize(
    ("runs", "what"),
    [
        ([(1, 1)], "not that of a page"),
        ([(4096, 0)], "without pages"),
        ([(4096, 2), (8192, 1)], "begins before"),
        ([(8192, 1), (4096, 1)], "begins before"),
        ([(ADDRESS_END - 4096, 2)], "outside of user memory"),
        ([(4096, 2**62)], "outside of user memory"),
    ],
)
def test_runs_that_make_no_sense(tmp_path: Path, runs: list, what: str):
    with begin(tmp_path) as new:
        new.add("pagemap-1", pb.pagemap_head(pages_id=1))
        for vaddr, count in runs:
            new.add(
                "pagemap-1",
                pb.pagemap_entry(vaddr=vaddr, compat_nr_pages=0, nr_pages=count, flags=4),
            )
        new.finish(durable=False)
    with ImageDirectory.open(tmp_path / "images") as images:
        with pytest.raises(BadImage, match=what) as caught:
            read_pagemap(images, "pagemap-1")
        assert caught.value.subject.startswith("pagemap-1.img, run ")
    with begin(tmp_path) as new, pytest.raises(Bug, match=what):
        write_pagemap(new, "pagemap-1", 1, [PageRun(vaddr=v, page_count=c) for v, c in runs])


@pytest.mark.parametrize("size", [None, 0, 4095, 8192])
def test_pages_file_of_the_wrong_size(tmp_path: Path, size: int | None):
    with begin(tmp_path) as new:
        write_pagemap(new, "pagemap-1", 1, [PageRun(vaddr=4096, page_count=1)])
        if size is not None:
            fd = new.create_file("pages-1")
            os.truncate(fd, size)
            os.close(fd)
        new.finish(durable=False)
    with ImageDirectory.open(tmp_path / "images") as images, pytest.raises(BadImage) as caught:
        read_pagemap(images, "pagemap-1")
    assert caught.value.subject == f"pages-1.img, byte {min(size or 0, 4096)}"


def test_older_entries_and_unknown_flags(tmp_path: Path):
    with begin(tmp_path) as new:
        new.add("pagemap-1", pb.pagemap_head(pages_id=1))
        new.add("pagemap-1", pb.pagemap_entry(vaddr=0, compat_nr_pages=1))
        new.add("pagemap-1", pb.pagemap_entry(vaddr=8192, compat_nr_pages=2, in_parent=True))
        new.add("pagemap-2", pb.pagemap_head(pages_id=1))
        new.add("pagemap-2", pb.pagemap_entry(vaddr=0, compat_nr_pages=1, flags=8))
        os.truncate(fd := new.create_file("pages-1"), 4096)
        os.close(fd)
        new.finish(durable=False)
    with ImageDirectory.open(tmp_path / "images") as images:
        first, second = read_pagemap(images, "pagemap-1").runs
        assert first == PageRun(vaddr=0, page_count=1)
        assert second == PageRun(vaddr=8192, page_count=2, flags=PageFlags.PARENT)
        with pytest.raises(BadImage, match="unknown flags 0x8"):
            read_pagemap(images, "pagemap-2")


def test_too_few_bytes_are_a_bug(tmp_path: Path):
    with begin(tmp_path) as new, pytest.raises(Bug, match="4095 bytes of pages instead of 4096"):
        write_pages(new, "pagemap-1", 1, [PageRun(vaddr=0, page_count=1)], [b"x" * 4095])

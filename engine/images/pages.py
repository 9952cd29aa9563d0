# SPDX-License-Identifier: Apache-2.0
"""Memory: a pagemap says which pages there are, pages-N.img holds their bytes.

Facts: a pagemap's head names N. Each entry is a run of pages from `vaddr` on, in ascending order.
Runs with PRESENT have their bytes in pages-N.img, one behind the other without gaps; PARENT runs
are in the images of an earlier dump; LAZY alone is served later by the dumping side. CRIU 4.2
counts in `nr_pages` and writes 0 into `compat_nr_pages`, where older readers look; we write both.
A pagemap-shmem-N counts addresses from the start of the shared memory.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag

from torpor.engine.errors import BadImage, Bug
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.failures import translated
from torpor.engine.images.format import Buffer
from torpor.engine.images.kinds import file_name
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.writing import NewImageDirectory

PAGE_BYTES = 4096
ADDRESS_END = 1 << 56
"""End of user addresses with five-level page tables, the widest there are."""
MAX_COMPAT = (1 << 32) - 1


class PageFlags(IntFlag):
    """Where a run's bytes are."""

    PARENT = 1
    LAZY = 2
    PRESENT = 4


_FLAGS = {int(flags): flags for flags in map(PageFlags, range(8))}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRun:
    """Consecutive pages with the same flags."""

    vaddr: int
    page_count: int
    flags: PageFlags = PageFlags.PRESENT

    @property
    def size_bytes(self) -> int:
        """Length of the run in memory."""
        return self.page_count * PAGE_BYTES

    @property
    def end(self) -> int:
        """First address behind the run."""
        return self.vaddr + self.size_bytes

    @property
    def is_elsewhere(self) -> bool:
        """Whether no directory has its bytes: they are still where it was dumped."""
        return self.flags == PageFlags.LAZY


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedRun:
    """A run, and where its bytes begin in the pages file; None when they are not there."""

    run: PageRun
    offset: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pagemap:
    """A checked pagemap and the image of its pages."""

    name: str
    pages_id: int
    runs: tuple[PageRun, ...]

    @property
    def pages_name(self) -> str:
        """Image that holds the bytes."""
        return f"pages-{self.pages_id}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of the runs that are PRESENT."""
        return sum(run.size_bytes for run in self.runs if PageFlags.PRESENT in run.flags)

    def located(self) -> Iterator[LocatedRun]:
        """Runs with the offset of their bytes."""
        offset = 0
        for run in self.runs:
            if PageFlags.PRESENT in run.flags:
                yield LocatedRun(run=run, offset=offset)
                offset += run.size_bytes
            else:
                yield LocatedRun(run=run, offset=None)


def read_pagemap(images: ImageDirectory, name: str) -> Pagemap:
    """Read `pagemap-N` or `pagemap-shmem-N` and hold it against its pages file.

    Raises: BadImage.
    """
    head: pb.pagemap_head | None = None
    runs: list[PageRun] = []
    for entry in images.entries(name):
        if isinstance(entry.message, pb.pagemap_head):
            head = entry.message
        elif isinstance(entry.message, pb.pagemap_entry):
            runs.append(_run(name, len(runs), entry.message))
    assert head is not None  # the format demands it
    _check_order(name, runs)
    pagemap = Pagemap(name=name, pages_id=head.pages_id, runs=tuple(runs))
    _check_size(images, pagemap)
    return pagemap


def open_pages(images: ImageDirectory, pagemap: Pagemap) -> int:
    """Descriptor of the pages file; the caller closes it."""
    return images.open_file(pagemap.pages_name)


def write_pagemap(
    images: NewImageDirectory, name: str, pages_id: int, runs: Sequence[PageRun]
) -> None:
    """Write a pagemap only: somebody else writes, or wrote, the pages."""
    try:
        _check_order(name, runs)
    except BadImage as error:
        raise Bug(error.what, subject=error.subject, cause=error.cause) from error
    with translated("write", file_name(name)):
        writer = images.writer(name)
        writer.add(pb.pagemap_head(pages_id=pages_id))
        for run in runs:
            writer.add(
                pb.pagemap_entry(
                    vaddr=run.vaddr,
                    compat_nr_pages=min(run.page_count, MAX_COMPAT),
                    nr_pages=run.page_count,
                    flags=int(run.flags),
                )
            )


def write_pages(
    images: NewImageDirectory,
    name: str,
    pages_id: int,
    runs: Sequence[PageRun],
    data: Iterable[Buffer],
) -> None:
    """Write a pagemap and its pages; `data` are the bytes of the PRESENT runs, one after another.

    The buffers may be cut anywhere.
    """
    write_pagemap(images, name, pages_id, runs)
    pages = f"pages-{pages_id}"
    written = 0
    with translated("write", file_name(pages)), os.fdopen(images.create_file(pages), "wb") as out:
        for piece in data:
            written += out.write(piece)
    wanted = sum(run.size_bytes for run in runs if PageFlags.PRESENT in run.flags)
    if written != wanted:
        raise Bug(f"{written} bytes of pages instead of {wanted}", subject=file_name(pages))


def _run(name: str, index: int, message: pb.pagemap_entry) -> PageRun:
    flags = message.flags
    if not message.HasField("flags"):  # older than the flags
        flags = PageFlags.PARENT if message.in_parent else PageFlags.PRESENT
    if flags not in _FLAGS:
        raise _bad(name, index, f"unknown flags {flags:#x}")
    return PageRun(
        vaddr=message.vaddr,
        page_count=message.nr_pages if message.HasField("nr_pages") else message.compat_nr_pages,
        flags=_FLAGS[flags],
    )


def _check_order(name: str, runs: Sequence[PageRun]) -> None:
    end = 0
    for index, run in enumerate(runs):
        if run.vaddr % PAGE_BYTES:
            raise _bad(name, index, f"address {run.vaddr:#x} is not that of a page")
        if run.page_count < 1:
            raise _bad(name, index, "a run without pages")
        if run.end > ADDRESS_END:
            raise _bad(name, index, f"run ends at {run.end:#x}, outside of user memory")
        if run.vaddr < end:
            raise _bad(name, index, f"run at {run.vaddr:#x} begins before {end:#x}, the last's end")
        end = run.end


def _check_size(images: ImageDirectory, pagemap: Pagemap) -> None:
    """The pages file must be exactly as long as the runs say; no file is no bytes."""
    size = 0
    if pagemap.pages_name in images:
        fd = images.open_file(pagemap.pages_name)
        try:
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
    if size != pagemap.stored_bytes:
        raise BadImage(
            f"does not fit {file_name(pagemap.name)}",
            subject=f"{file_name(pagemap.pages_name)}, byte {min(size, pagemap.stored_bytes)}",
            cause=f"{size} bytes, the runs say {pagemap.stored_bytes}",
            remedy="take the images from an intact copy, or dump again",
        )


def _bad(name: str, index: int, what: str) -> BadImage:
    return BadImage(
        what,
        subject=f"{file_name(name)}, run {index}",
        remedy="take the images from an intact copy, or dump again",
    )

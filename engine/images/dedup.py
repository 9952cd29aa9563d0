# SPDX-License-Identifier: Apache-2.0
"""Taking pages away from earlier dumps that a later one has anew.

Holes are punched into the pages files, whose length and whose pagemaps stay (as `criu dedup`
does), so that an earlier dump can no longer be restored alone. Its torpor.json gets the new
digests.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torpor.engine import native
from torpor.engine.errors import BadImage
from torpor.engine.images import manifest
from torpor.engine.images.directory import ImageDirectory, digest
from torpor.engine.images.failures import translated
from torpor.engine.images.kinds import file_name
from torpor.engine.images.pages import PageFlags, PageRun, read_pagemap
from torpor.engine.images.parents import Chain, overlapping


def dedup(images: ImageDirectory) -> int:
    """Take from all parents of a directory what younger ones have; bytes.

    Raises: BadImage when it has no parent.
    """
    with Chain(images) as chain:
        if not chain.follow():
            raise BadImage("has no parent", subject=str(images.path),
                           remedy="keep all dumps of a chain, and their links")  # fmt: skip
        taken = 0
        level = 0
        while level < len(chain.levels) - 1:
            for name in chain.levels[level].names:
                if name.startswith("pagemap-"):
                    runs = read_pagemap(chain.levels[level], name).runs
                    taken += _take(chain, name, runs, level + 1)
            level += 1
            chain.follow()
        _reseal(chain)
        return taken


def _take(chain: Chain, name: str, runs: tuple[PageRun, ...], level: int) -> int:
    taken = 0
    stored = chain.stored(name, level)
    for run in runs:
        if PageFlags.PRESENT in run.flags:
            for part in overlapping(stored, run.vaddr, run.end):
                with _writable(part.fd) as fd:
                    native.punch(fd, part.offset, part.size_bytes)
                taken += part.size_bytes
                chain.changed.add((part.level, part.fd))
    return taken


def clear(images: ImageDirectory) -> None:
    """Take all pages of a directory and of its parents away: they have been restored."""
    with Chain(images) as chain:
        while chain.follow():
            continue
        for level in chain.levels:
            for name in level.names:
                if name.startswith("pages-"):
                    with _writable(chain.file(chain.levels.index(level), name)) as fd:
                        native.punch(fd, 0, max(os.fstat(fd).st_size, 1))


@contextmanager
def _writable(fd: int) -> Iterator[int]:
    with translated("open for writing", "pages"):
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield again
    finally:
        os.close(again)


def _reseal(chain: Chain) -> None:
    """Tell the new digests of what was changed."""
    for level, images in enumerate(chain.levels):
        changed = {fd for at, fd in chain.changed if at == level}
        if images.manifest is None or not changed:
            continue
        files = dict(images.manifest.files)
        for (at, name), fd in chain.files.items():
            if at == level and fd in changed:
                files[file_name(name)] = digest(fd, manifest.XXH64)
        text = manifest.encode(replace(images.manifest, files=files))
        scratch = f".{manifest.NAME}.{os.getpid()}"
        with translated("write", manifest.NAME):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(scratch, flags, 0o600, dir_fd=images.fd), "wb") as stream:
                stream.write(text)
            os.rename(scratch, manifest.NAME, src_dir_fd=images.fd, dst_dir_fd=images.fd)

# SPDX-License-Identifier: Apache-2.0
"""A pages file: written, digested, and told of while it grows."""

import os
from array import array
from collections.abc import Callable

from torpor.engine import native
from torpor.engine.images.failures import translated
from torpor.engine.images.kinds import file_name
from torpor.engine.images.writing import NewImageDirectory


def write(
    images: NewImageDirectory,
    name: str,
    extents: "array[int]",
    told: Callable[[int], None] | None = None,
    *,
    lenient: bool = False,
    threads: int = 2,
) -> int:
    """Write the image of a name (see `native.write_pages`); gives its bytes.

    ``told`` gets the bytes that are there.
    """
    fd = images.create_file(name)

    def tell(done: int) -> None:
        if told is not None:
            told(done)
        images.grown(name, fd, done)

    progress = native.PagesProgress(tell)
    try:
        with translated("write", file_name(name)):
            images.digested(
                name, native.write_pages(extents, fd, progress, threads, lenient=lenient)
            )
        images.grown(name, fd, progress.written_bytes, whole=True)
    finally:
        os.close(fd)
    return progress.written_bytes

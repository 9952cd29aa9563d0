# SPDX-License-Identifier: Apache-2.0
"""Helpers of a transfer: pieces of files, bounded parallel work, errors of the disk."""

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torpor.engine.errors import Refused
from torpor.engine.options import Progress, ProgressFn
from torpor.engine.text import size
from torpor.plugin.store.base import Cancel, StoreFailed
from torpor.plugin.store.manifest import MAX_MANIFEST_BYTES, Chunk

WORKERS = min(max(len(os.sched_getaffinity(0)), 2), 8)
"""Threads of a transfer; each holds a chunk, plain and compressed."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Counter:
    """Counts bytes, tells progress, and ends the transfer when asked."""

    def __init__(self, phase: str, total: int, progress: ProgressFn, cancel: Cancel) -> None:
        self._phase = phase
        self._total = total
        self._done = 0
        self._progress = progress
        self._cancel = cancel

    def add(self, size_bytes: int) -> None:
        """Count what was done.

        Raises:
            Vanished: the transfer was called off.
        """
        self._cancel.check()
        self._done += size_bytes
        text = f"{size(self._done)} of {size(self._total)}"
        self._progress(Progress(phase=self._phase, text=text, done=self._done, total=self._total))


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Turn an OSError into what the user can do about it."""
    try:
        yield
    except OSError as error:
        raise _explain(error, subject) from error


def in_parallel(
    work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Generator[_Result, None, None]:
    """Do ``work`` on the items with a few threads, in order, holding only a few at once."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def walk(root: Path) -> Iterator[Path]:
    """Every regular file below a directory, in a fixed order.

    Raises:
        Refused: something else is there.
    """
    with translated(f"staging directory {root}"):
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from walk(Path(entry.path))
            elif stat.S_ISREG(mode):
                yield Path(entry.path)
            else:
                raise Refused(
                    "only regular files can be stored",
                    subject=entry.path,
                    remedy="this is a defect of torpor: report it",
                )


def read_at(fd: int, size_bytes: int, offset: int) -> bytes:
    """So many bytes of a file, which has them."""
    parts, end = [], offset + size_bytes
    while offset < end:
        part = os.pread(fd, end - offset, offset)
        if not part:
            raise OSError(errno.EIO, "it has become shorter")
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def offsets(chunks: Iterable[Chunk]) -> Iterator[tuple[int, Chunk]]:
    """Each chunk with its place in the file."""
    offset = 0
    for chunk in chunks:
        yield offset, chunk
        offset += chunk.size_bytes


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def read_limited(path: Path) -> bytes:
    """Read a manifest, a little more than is allowed if it is longer."""
    with path.open("rb") as file:
        return file.read(MAX_MANIFEST_BYTES + 1)


def _explain(error: OSError, subject: str) -> StoreFailed:
    cause = f"{errno.errorcode.get(error.errno or 0, '?')} ({error.strerror})"
    if error.errno in _FULL:
        return StoreFailed(
            "no space is left",
            subject=subject,
            cause=cause,
            remedy="free space on the volume or enlarge it, then repeat the checkpoint",
        )
    if error.errno in _READ_ONLY:
        return StoreFailed(
            "the volume may not be written" if error.errno == errno.EROFS else "access is denied",
            subject=subject,
            cause=cause,
            remedy="mount the volume writable for uid 0 of the agent (NFS: no_root_squash)",
        )
    return StoreFailed(
        "the volume does not answer as it should",
        subject=subject,
        cause=cause,
        remedy="see whether the volume is mounted and its server runs, then repeat",
    )

# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on its way out of a volume store: chunks of all its files, several at a time.

A chunk is read, checked, decompressed and written by one thread, so that these steps of different
chunks go on beside one another. Small files come first.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torpor.plugin.store.chunks import ZEROS_SHA256, ChunkDirectory
from torpor.plugin.store.manifest import Chunk, FileEntry
from torpor.plugin.store.transfer import Counter, in_parallel, offsets, translated, write_at


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A chunk and its place."""

    target: Path
    fd: int
    offset: int
    chunk: Chunk
    is_last: bool


@dataclass(slots=True, kw_only=True)
class Fetch:
    """Files of one checkpoint that are made in a directory."""

    chunks: ChunkDirectory
    subject: str
    into: Path
    count: Counter
    _open: set[int] = field(default_factory=set)

    def run(self, entries: Sequence[FileEntry]) -> None:
        """Make them all."""
        try:
            with closing(in_parallel(self._fetch, self._pieces(entries))) as done:
                for piece in done:
                    self.count.add(piece.chunk.size_bytes)
                    if piece.is_last:
                        self._finish(piece.fd)
        finally:
            for fd in self._open:
                os.close(fd)

    def _pieces(self, entries: Sequence[FileEntry]) -> Iterator[_Piece]:
        for entry in sorted(entries, key=lambda each: (each.size_bytes, each.path)):
            target = self.into / entry.path
            fd = self._create(target, entry)
            for offset, chunk in offsets(entry.chunks):
                is_last = offset + chunk.size_bytes == entry.size_bytes
                yield _Piece(target=target, fd=fd, offset=offset, chunk=chunk, is_last=is_last)
            if not entry.chunks:
                self._finish(fd)

    def _create(self, target: Path, entry: FileEntry) -> int:
        with translated(f"file {target}"):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(target, flags, entry.mode)
            self._open.add(fd)
            os.truncate(fd, entry.size_bytes)
        return fd

    def _fetch(self, piece: _Piece) -> _Piece:
        chunk = piece.chunk
        if chunk.sha256 == ZEROS_SHA256:
            return piece
        with translated(self.subject):
            data = self.chunks.read(chunk.sha256, chunk.size_bytes)
        with translated(f"file {piece.target}"):
            write_at(piece.fd, data, piece.offset)
        return piece

    def _finish(self, fd: int) -> None:
        self._open.discard(fd)
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on its way out of a volume store: chunks of all its files, several at a time.

A chunk is read, checked, decompressed and written by one thread, so that these steps of different
chunks go on beside one another. Small files come first, those that may be late last.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torpor.plugin.store.base import Precedence
from torpor.plugin.store.chunks import ZEROS_SHA256, ChunkDirectory
from torpor.plugin.store.manifest import Chunk, FileEntry, Manifest
from torpor.plugin.store.transfer import Counter, in_parallel, offsets, translated, write_at


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A chunk and its place."""

    target: Path
    fd: int
    offset: int
    chunk: Chunk
    is_last: bool
    is_late: bool


@dataclass(slots=True, kw_only=True)
class Fetch:
    """Files of one checkpoint that are made in a directory."""

    chunks: ChunkDirectory
    subject: str
    into: Path
    count: Counter
    _open: set[int] = field(default_factory=set)

    def run(self, manifest: Manifest, precedence: Precedence | None) -> None:
        """Make them all."""
        first = precedence or Precedence(is_late=lambda _: False, when_early=lambda _: None)
        is_late, is_told = first.is_late, False
        order = sorted(
            manifest.files, key=lambda each: (is_late(each.path), each.size_bytes, each.path)
        )
        try:
            with closing(in_parallel(self._fetch, self._pieces(order, is_late))) as done:
                for piece in done:
                    if piece.is_late and not is_told:
                        is_told = True
                        first.when_early(manifest)
                    self.count.add(piece.chunk.size_bytes)
                    if piece.is_last:
                        self._finish(piece.fd)
            if not is_told:
                first.when_early(manifest)
        finally:
            for fd in self._open:
                os.close(fd)

    def _pieces(
        self, entries: Sequence[FileEntry], is_late: Callable[[str], bool]
    ) -> Iterator[_Piece]:
        for entry in entries:
            target = self.into / entry.path
            fd = self._create(target, entry)
            for offset, chunk in offsets(entry.chunks):
                yield _Piece(
                    target=target,
                    fd=fd,
                    offset=offset,
                    chunk=chunk,
                    is_last=offset + chunk.size_bytes == entry.size_bytes,
                    is_late=is_late(entry.path),
                )
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

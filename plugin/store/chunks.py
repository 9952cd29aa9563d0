# SPDX-License-Identifier: Apache-2.0
"""Chunk files: zstd, named by the SHA-256 of the plain bytes, whole from the first moment.

A chunk is written under a temporary name, fsynced, and renamed; what has a chunk's name is
therefore complete unless the disk failed, which reading detects. A full chunk of zeros is
never stored, its name says everything.
"""

import hashlib
import os
import secrets
import threading
import time
from pathlib import Path

import zstandard

from torpor.engine.errors import BadImage
from torpor.plugin.store.level import Levels

CHUNK_BYTES = 4 << 20
_ZEROS = bytes(CHUNK_BYTES)
ZEROS_SHA256 = hashlib.sha256(_ZEROS).hexdigest()
"""Of a whole chunk of zeros, the only one that is never stored."""
_OVERHEAD_BYTES = 1024
_local = threading.local()


class ChunkDirectory:
    """The directory of chunks. All methods may be called from several threads."""

    def __init__(self, chunks: Path, temporary: Path) -> None:
        self._chunks = chunks
        self._temporary = temporary
        self._levels = Levels()

    def path(self, sha256: str) -> Path:
        """Where the chunk lies."""
        return self._chunks / sha256[:2] / f"{sha256}.zst"

    def write(self, data: bytes) -> tuple[str, Path | None]:
        """Store a chunk unless it is there; gives its digest, and its directory if written."""
        if data == _ZEROS:
            return ZEROS_SHA256, None
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        if self._has(sha256, len(data)):
            return sha256, None
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = self._temporary_path()
        try:
            level = self._levels.next()
            begin = time.perf_counter()
            packed = _compressor(level).compress(data)
            done = time.perf_counter()
            write_synced(temporary, packed)
            written = time.perf_counter()
            self._levels.learn(level, len(data), len(packed), done - begin, written - done)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return sha256, path.parent

    def read(self, sha256: str, size_bytes: int) -> bytes:
        """Read a chunk and check it.

        Raises:
            BadImage: it is missing or is not what its name says.
        """
        if sha256 == ZEROS_SHA256:
            return _ZEROS
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                packed = file.read(size_bytes + size_bytes // 128 + _OVERHEAD_BYTES)
        except FileNotFoundError as error:
            raise _bad(sha256, "it is missing") from error
        try:
            frame = zstandard.get_frame_parameters(packed)
            if frame.content_size != size_bytes:
                raise _bad(sha256, f"it does not hold {size_bytes} bytes")
            data = _decompressor().decompress(packed)
        except zstandard.ZstdError as error:
            raise _bad(sha256, f"zstd: {error}") from error
        if len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256:
            raise _bad(sha256, "its digest differs")
        return data

    def stored_bytes(self, sha256: str, size_bytes: int) -> int:
        """Size on disk, 0 for zeros.

        Raises:
            BadImage: it is missing.
        """
        if sha256 == ZEROS_SHA256:
            return 0
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError as error:
            raise _bad(sha256, "it is missing") from error

    def _has(self, sha256: str, size_bytes: int) -> bool:
        """Whether a good copy is there; keeps it from being swept meanwhile."""
        path = self.path(sha256)
        try:
            os.utime(path)
            self.read(sha256, size_bytes)
        except (FileNotFoundError, BadImage):
            return False
        return True

    def _temporary_path(self) -> Path:
        return self._temporary / secrets.token_hex(16)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """Make a file that nobody else may read, durable when this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        # What verify reads shall come from the disk, not from memory.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    name = f"compressor_{level}"
    found = getattr(_local, name, None)
    if not isinstance(found, zstandard.ZstdCompressor):
        found = zstandard.ZstdCompressor(level=level, write_checksum=False)
        setattr(_local, name, found)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    found = getattr(_local, "decompressor", None)
    if not isinstance(found, zstandard.ZstdDecompressor):
        found = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        _local.decompressor = found
    return found


def _bad(sha256: str, cause: str) -> BadImage:
    return BadImage(
        "a chunk of the checkpoint is damaged",
        subject=f"chunk {sha256}",
        cause=cause,
        remedy="take the checkpoint anew; look at the disk of the store",
    )

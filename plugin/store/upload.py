# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on its way into a volume store: its files are stored while they are written.

Whoever writes a file tells how many bytes of it are final. A few threads read them a chunk at a
time, compress, store, and read back what was stored. What is stored leaves the file, so that no
second copy of a workload's memory lies on the node's disk; and the writer waits when more than a
part of the free room there would wait for the store.
"""

import os
import threading
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from torpor.engine import native
from torpor.engine.errors import Bug, Error
from torpor.engine.options import Progress, ProgressFn
from torpor.engine.text import size
from torpor.plugin.store.base import Cancel, SourceTree, StoredManifest
from torpor.plugin.store.chunks import CHUNK_BYTES, ChunkDirectory
from torpor.plugin.store.manifest import Chunk, FileEntry, Head
from torpor.plugin.store.transfer import WORKERS, read_at, translated, walk

LEAST_WAITING = 16 * CHUNK_BYTES
"""Bytes that may wait for the store however full the disk is."""
_LOOK_S = 0.2
_LEAVE_S = 5.0

Finish = Callable[[Head, Sequence[FileEntry], Set[Path]], StoredManifest]
"""Writes the manifest of files whose chunks are stored, in directories yet to be synced."""


@dataclass(slots=True, kw_only=True)
class _File:
    """A file that is taken; ``fd`` is ours, and is closed when its last chunk was read."""

    path: str
    fd: int
    is_followed: bool
    end: int = 0
    """So much of it was handed out."""
    open_chunks: int = 0
    is_whole: bool = False
    is_void: bool = False
    stored_bytes: int = 0
    chunks: list[tuple[Future[Chunk], int]] = field(default_factory=list)
    """With the bytes of each."""


class VolumeUpload:
    """`Upload` into a directory of chunks."""

    def __init__(
        self,
        chunks: ChunkDirectory,
        subject: str,
        finish: Finish,
        progress: ProgressFn,
        cancel: Cancel,
    ) -> None:
        self._chunks, self._subject, self._finish = chunks, subject, finish
        self._progress, self._cancel = progress, cancel
        self._pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="store")
        self._files: dict[str, _File] = {}
        self._written: set[Path] = set()
        self._verified: set[str] = set()
        self._changed = threading.Condition()
        self._waiting_bytes = self._stored_bytes = self._total_bytes = self._running = 0
        self._most_waiting = 0
        self._failure: BaseException | None = None

    @property
    def verified(self) -> Set[str]:
        """See `Upload`."""
        return self._verified

    @property
    def stored_bytes(self) -> int:
        """See `Upload`."""
        with self._changed:
            return self._stored_bytes

    def forget(self, folder: str) -> None:
        """See `Upload`."""
        for path in [each for each in self._files if each.startswith(folder)]:
            file = self._files.pop(path)
            with self._changed:
                file.is_void = file.is_whole = True
                self._stored_bytes -= file.stored_bytes
                for chunk, size_bytes in file.chunks:
                    if chunk.cancel():
                        self._waiting_bytes -= size_bytes
                        file.open_chunks -= 1
                self._close_when_done(file)

    def grown(self, path: str, fd: int, size_bytes: int, *, whole: bool = False) -> None:
        """See `Upload`."""
        if path not in self._files:
            self._files[path] = _File(path=path, fd=os.dup(fd), is_followed=True)
            self._most_waiting = max(_free_bytes(fd) // 2, LEAST_WAITING)
        self._hand_out(self._files[path], size_bytes, whole=whole)

    def catch_up(self) -> None:
        """See `Upload`."""
        self._wait(lambda: not self._waiting_bytes)

    def commit(self, tree: SourceTree) -> StoredManifest:
        """See `Upload`."""
        sources = tuple(walk(tree.root))
        sizes = {path: path.stat().st_size for path in sources}
        self._total_bytes = sum(sizes.values())
        self._most_waiting = LEAST_WAITING
        entries = [self._entry(tree.root, path, sizes[path]) for path in sources]
        self.catch_up()
        self._tell()
        files = [
            FileEntry(path=name, size_bytes=length, mode=mode, chunks=self._chunks_of(name))
            for name, length, mode in entries
        ]
        return self._finish(tree.head, files, self._written)

    def close(self) -> None:
        """Take no more; what is under way may end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._changed:  # a store that hangs is not waited for
            self._changed.wait_for(lambda: not self._running, timeout=_LEAVE_S)
            is_idle = not self._running
        for file in self._files.values():
            if file.fd >= 0 and is_idle:
                os.close(file.fd)

    # ---- in the thread of the caller -----------------------------------------------------

    def _entry(self, root: Path, source: Path, size_bytes: int) -> tuple[str, int, int]:
        """Have a file stored, if it was not; gives name, size and mode."""
        name = source.relative_to(root).as_posix()
        mode = source.stat().st_mode & 0o777
        if name not in self._files:
            with translated(f"staged file {source}"):
                fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._files[name] = _File(path=name, fd=fd, is_followed=False)
            self._hand_out(self._files[name], size_bytes, whole=True)
        file = self._files[name]
        if not file.is_whole or file.end != size_bytes:
            raise Bug(
                "a file was changed after it had been stored",
                subject=name,
                cause=f"{file.end} bytes of {size_bytes} were stored",
            )
        return name, size_bytes, mode

    def _hand_out(self, file: _File, size_bytes: int, *, whole: bool) -> None:
        while size_bytes - file.end >= CHUNK_BYTES or (whole and file.end < size_bytes):
            count = min(CHUNK_BYTES, size_bytes - file.end)
            self._wait(lambda: self._waiting_bytes <= self._most_waiting)
            with self._changed:
                self._waiting_bytes += count
                file.open_chunks += 1
            work = self._pool.submit(self._work, file, file.end, count)
            file.chunks.append((work, count))
            file.end += count
        file.is_whole |= whole
        if whole:
            with self._changed:
                self._close_when_done(file)
        self._tell()

    def _wait(self, is_so: Callable[[], bool]) -> None:
        """Until something is so, or the work failed, was called off, or took too long."""
        while True:
            with self._changed:
                done = self._changed.wait_for(lambda: self._failure or is_so(), timeout=_LOOK_S)
            if self._failure is not None:
                raise self._failure
            self._cancel.check()
            if done:
                return
            self._tell()

    def _tell(self) -> None:
        done, total = self.stored_bytes, self._total_bytes
        text = f"{size(done)} of {size(total)}" if total else size(done)
        self._progress(Progress(phase="storing", text=text, done=done, total=total))

    def _chunks_of(self, name: str) -> tuple[Chunk, ...]:
        return tuple(chunk.result() for chunk, _ in self._files[name].chunks)

    # ---- in the threads of the pool ------------------------------------------------------

    def _work(self, file: _File, offset: int, size_bytes: int) -> Chunk:
        with self._changed:
            self._running += 1
        try:
            return self._store(file, offset, size_bytes)
        except BaseException as error:
            with self._changed:
                if not file.is_void:
                    self._failure = self._failure or error
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._waiting_bytes -= size_bytes
                if not file.is_void:
                    self._stored_bytes += size_bytes
                    file.stored_bytes += size_bytes
                file.open_chunks -= 1
                self._close_when_done(file)
                self._changed.notify_all()

    def _store(self, file: _File, offset: int, size_bytes: int) -> Chunk:
        self._cancel.check()
        with translated(f"staged file {file.path}"):
            data = read_at(file.fd, size_bytes, offset)
        with translated(self._subject):
            sha256, directory = self._chunks.write(data)
            if directory is not None:
                self._chunks.read(sha256, size_bytes)
        with self._changed:
            self._verified.add(sha256)
            if directory is not None:
                self._written.add(directory)
        if file.is_followed:
            with suppress(Error):  # a file system that cannot keeps it until the end
                native.punch(file.fd, offset, size_bytes)
        return Chunk(sha256=sha256, size_bytes=size_bytes)

    def _close_when_done(self, file: _File) -> None:
        """The lock is held."""
        if file.is_whole and not file.open_chunks and file.fd >= 0:
            os.close(file.fd)
            file.fd = -1


def _free_bytes(fd: int) -> int:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize

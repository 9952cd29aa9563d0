# SPDX-License-Identifier: Apache-2.0
"""A store on a mounted volume: content-addressed chunks, and manifests written last.

    <root>/v1/store.json                                   says that this is a store
    <root>/v1/lock                                         shared by puts, exclusive for sweeps
    <root>/v1/tmp/                                         files on their way
    <root>/v1/chunks/ab/<sha256>.zst
    <root>/v1/checkpoints/<namespace>/<name>-<uid>/manifest.json

A put that died leaves chunks without a manifest: the next put of the same data finds and
uses them, and `sweep` removes them after a grace period. Several nodes may share the volume;
where it cannot lock, only the grace period keeps a sweep from a put, and a put looks at all
its chunks once more before it writes the manifest.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from torpor.engine.errors import BadImage, Refused, Timeout
from torpor.engine.options import ProgressFn, no_progress
from torpor.plugin.store.base import (
    Cancel,
    Precedence,
    SourceTree,
    StoredManifest,
    StoreFailed,
)
from torpor.plugin.store.chunks import ChunkDirectory, sync_directory, write_synced
from torpor.plugin.store.fetch import Fetch
from torpor.plugin.store.manifest import (
    CheckpointRef,
    FileEntry,
    Head,
    Manifest,
    decode,
    digest,
    encode,
)
from torpor.plugin.store.transfer import Counter, in_parallel, read_limited, translated
from torpor.plugin.store.upload import VolumeUpload

_log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class VolumeStore:
    """`Store` on a directory."""

    def __init__(
        self, root: Path, *, grace_s: float = 3600.0, lock_timeout_s: float = 60.0
    ) -> None:
        self._root = root
        self._v1 = root / "v1"
        self._chunk_files = ChunkDirectory(self._v1 / "chunks", self._v1 / "tmp")
        self._grace_s = grace_s
        self._lock_timeout_s = lock_timeout_s

    @contextmanager
    def upload(
        self,
        ref: CheckpointRef,
        progress: ProgressFn = no_progress,
        *,
        cancel: Cancel | None = None,
    ) -> Iterator[VolumeUpload]:
        """See `Store.upload`."""
        with ExitStack() as stack:
            with self._translated():
                anchor = stack.enter_context(self._opened(create=True))
                stack.enter_context(self._lock(fcntl.LOCK_SH))

            def finish(
                head: Head, files: Sequence[FileEntry], written: Set[Path]
            ) -> StoredManifest:
                return self._finish(ref, anchor, Manifest(head=head, files=tuple(files)), written)

            work = VolumeUpload(
                self._chunk_files, self._subject, finish, progress, cancel or Cancel()
            )
            stack.callback(work.close)
            yield work

    def put(
        self,
        ref: CheckpointRef,
        tree: SourceTree,
        progress: ProgressFn = no_progress,
        *,
        cancel: Cancel | None = None,
    ) -> StoredManifest:
        """See `Store.put`."""
        with self.upload(ref, progress, cancel=cancel) as upload:
            return upload.commit(tree)

    def verify(
        self,
        ref: CheckpointRef,
        *,
        digest: str | None = None,
        known: Set[str] = frozenset(),
        cancel: Cancel | None = None,
    ) -> StoredManifest:
        """See `Store.verify`."""
        with self._translated(), self._opened():
            found = self._read_manifest(ref, digest)
            watch = cancel or Cancel()

            def check(item: tuple[str, int]) -> None:
                watch.check()
                with self._translated():
                    self._chunk_files.read(*item)

            unknown = [each for each in found.manifest.chunks.items() if each[0] not in known]
            for _ in in_parallel(check, unknown):
                pass
        return found

    def get(
        self,
        ref: CheckpointRef,
        into: Path,
        progress: ProgressFn = no_progress,
        *,
        digest: str | None = None,
        precedence: Precedence | None = None,
        cancel: Cancel | None = None,
    ) -> StoredManifest:
        """See `Store.get`."""
        with self._translated(), self._opened():
            found = self._read_manifest(ref, digest)
            count = Counter("fetching", found.size_bytes, progress, cancel or Cancel())
            with translated(f"directory {into}"):
                into.mkdir(mode=0o700, parents=True, exist_ok=True)
                if any(into.iterdir()):
                    raise Refused(
                        "the directory is not empty",
                        subject=str(into),
                        remedy="name a new one",
                    )
            fetch = Fetch(chunks=self._chunk_files, subject=self._subject, into=into, count=count)
            fetch.run(found.manifest, precedence)
        return found

    def delete(self, ref: CheckpointRef) -> int:
        """See `Store.delete`."""
        with self._translated():
            if not (self._root / ref.path).exists():
                return 0
            with self._opened(), self._lock(fcntl.LOCK_EX) as is_locked:
                try:
                    candidates = set(self._read_manifest(ref, None).manifest.chunks)
                except BadImage:
                    candidates = set()  # a sweep will find them
                self._remove_manifest(ref)
                return self._remove_chunks(candidates, 0.0 if is_locked else self._grace_s)

    def list(self) -> tuple[CheckpointRef, ...]:
        """See `Store.list`."""
        found = []
        with self._translated(), self._opened():
            for path in sorted(self._v1.glob("checkpoints/*/*/manifest.json")):
                try:
                    found.append(decode(read_limited(path)).head.ref)
                except BadImage as error:
                    _log.warning("%s: left out of the list: %s", path.parent.name, error)
        return tuple(found)

    def sweep(self) -> int:
        """See `Store.sweep`; what was touched within the grace period stays."""
        if not self._v1.is_dir():
            return 0
        with self._translated(), self._opened(), self._lock(fcntl.LOCK_EX):
            oldest_s = time.time() - self._grace_s
            for path in (self._v1 / "tmp").iterdir():
                if path.stat().st_mtime < oldest_s:
                    path.unlink(missing_ok=True)
            names = {path.stem for path in (self._v1 / "chunks").glob("??/*.zst")}
            return self._remove_chunks(names, self._grace_s)

    # ---- manifests ---------------------------------------------------------------------

    def _finish(
        self, ref: CheckpointRef, anchor: int, manifest: Manifest, written: Set[Path]
    ) -> StoredManifest:
        """Make the checkpoint be there: its chunks first, then what names them."""
        with self._translated():
            for directory in sorted(written):
                sync_directory(directory)
            sync_directory(self._v1 / "chunks")
            stored = self._stored_bytes(manifest)
            self._check_anchor(anchor)
            encoded = encode(manifest)
            self._write_manifest(ref, encoded)
            self._check_anchor(anchor)
        return StoredManifest(
            ref=ref,
            manifest=manifest,
            digest=digest(encoded),
            size_bytes=manifest.size_bytes,
            stored_bytes=stored,
        )

    def _write_manifest(self, ref: CheckpointRef, encoded: bytes) -> None:
        directory = self._root / ref.path
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._v1 / "tmp" / secrets.token_hex(16)
        try:
            write_synced(temporary, encoded)
            for each in (directory.parent.parent, directory.parent):
                sync_directory(each)
            temporary.rename(directory / "manifest.json")
            sync_directory(directory)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _read_manifest(self, ref: CheckpointRef, expected: str | None) -> StoredManifest:
        try:
            encoded = read_limited(self._root / ref.path / "manifest.json")
        except FileNotFoundError as error:
            raise StoreFailed(
                "the store does not hold the checkpoint",
                subject=f"{ref} in store {self._root}",
                remedy="name the store that it was written to; see whether it was deleted",
            ) from error
        found = digest(encoded)
        if expected is not None and found != expected:
            raise BadImage(
                "the manifest is not the one that was stored",
                subject=str(ref),
                cause=f"its digest is {found}, not {expected}",
                remedy="take the checkpoint anew; see who may write to the store",
            )
        manifest = decode(encoded)
        if manifest.head.ref != ref:
            raise BadImage(
                "the manifest belongs to another checkpoint",
                subject=str(ref),
                cause=f"it says {manifest.head.ref}",
                remedy="see who may write to the store",
            )
        return StoredManifest(
            ref=ref,
            manifest=manifest,
            digest=found,
            size_bytes=manifest.size_bytes,
            stored_bytes=self._stored_bytes(manifest),
        )

    def _stored_bytes(self, manifest: Manifest) -> int:
        return sum(
            self._chunk_files.stored_bytes(sha256, size) for sha256, size in manifest.chunks.items()
        )

    def _remove_manifest(self, ref: CheckpointRef) -> None:
        directory = self._root / ref.path
        (directory / "manifest.json").unlink(missing_ok=True)
        sync_directory(directory)
        directory.rmdir()
        with suppress(OSError):  # other checkpoints of the namespace
            directory.parent.rmdir()

    def _remove_chunks(self, candidates: set[str], grace_s: float) -> int:
        """Unlink those which no manifest names; none at all if one manifest is unreadable."""
        used: set[str] = set()
        for path in self._v1.glob("checkpoints/*/*/manifest.json"):
            try:
                used |= decode(read_limited(path)).chunks.keys()
            except BadImage as error:
                _log.warning("%s: nothing removed, what it uses is unknown: %s", path.parent, error)
                return 0
        freed, youngest_s = 0, time.time() - grace_s
        for sha256 in candidates - used:
            path = self._chunk_files.path(sha256)
            with suppress(FileNotFoundError):
                found = path.stat()
                if not grace_s or found.st_mtime < youngest_s:
                    path.unlink()
                    freed += found.st_size
        return freed

    # ---- the volume --------------------------------------------------------------------

    @contextmanager
    def _opened(self, *, create: bool = False) -> Iterator[int]:
        """A descriptor of the store's directory, so that its loss is noticed."""
        if not self._root.is_dir():
            raise StoreFailed(
                "the store is not there",
                subject=f"store {self._root}",
                remedy="see whether its volume is mounted on this node",
            )
        if create:
            for name in ("chunks", "tmp", "checkpoints"):
                (self._v1 / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._mark()
        elif not self._v1.is_dir():
            raise StoreFailed(
                "the directory is no store of torpor",
                subject=f"store {self._root}",
                remedy="see whether the right volume is mounted on this node",
            )
        fd = os.open(self._v1, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _mark(self) -> None:
        with suppress(FileExistsError), (self._v1 / "store.json").open("x") as file:
            json.dump({"kind": "torpor-store", "version": 1}, file)

    def _check_anchor(self, anchor: int) -> None:
        """Raise if another directory is there now: the volume was unmounted under us."""
        there, ours = self._v1.stat(), os.fstat(anchor)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise StoreFailed(
                "the store was taken away while it was written",
                subject=f"store {self._root}",
                remedy="mount its volume again, then repeat the checkpoint",
            )

    @contextmanager
    def _lock(self, kind: int) -> Iterator[bool]:
        """Hold the store's lock; False where the file system has none."""
        fd = os.open(self._v1 / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield self._wait_for_lock(fd, kind)
        finally:
            os.close(fd)

    def _wait_for_lock(self, fd: int, kind: int) -> bool:
        deadline_s = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline_s:
                    raise Timeout(
                        f"the store stayed locked for {self._lock_timeout_s:g} s",
                        subject=f"store {self._root}",
                        cause="another checkpoint is being written or deleted",
                        remedy="try again later",
                    ) from error
                time.sleep(0.05)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return False
                raise
            else:
                return True

    @property
    def _subject(self) -> str:
        return f"store {self._root}"

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._subject)

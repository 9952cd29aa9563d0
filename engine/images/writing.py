# SPDX-License-Identifier: Apache-2.0
"""Writing an image directory: whole, or not there.

A path that does not exist yet is written under `PATH.incomplete` and renamed. A directory that the
caller made is written in place, with a marker file that is removed last; readers refuse it until
then. Where whole images are to be replaced, the new ones are written in a directory inside, and
moved at the end, with that marker: until then the old ones are as they were. All hold a lock
(flock) on the directory while they write: what a killed dump left behind has no lock and is
cleared by the next one.
"""

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from google.protobuf.message import Message

from torpor.engine.errors import Bug, Refused
from torpor.engine.images import manifest, rounds
from torpor.engine.images.directory import (
    INCOMPLETE,
    INVENTORY,
    PAGES_ELSEWHERE,
    checked_name,
    digest,
    list_images,
)
from torpor.engine.images.failures import translated
from torpor.engine.images.format import Buffer, Writer
from torpor.engine.images.kinds import SERVICE, file_name, kind_of
from torpor.engine.images.manifest import Manifest
from torpor.engine.options import Follower

CREATE_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_MODE = 0o600
PARENT = "parent"
"""Link to the directory of an earlier dump (see `parents.py`)."""
ASIDE = "torpor.new"
"""Directory, inside another, of images that will replace others."""
DIRECTORY_MODE = 0o700


class NewImageDirectory:
    """An image directory that is being written. In a `with` statement: without `finish`, gone.

    Also an ImageSink: `add` appends to an image file, `extra` keeps what goes to torpor.json.
    """

    def __init__(self, path: Path, place: Path, fd: int) -> None:
        self.path = path
        self.follower: Follower | None = None
        """Who has the pages as they are written."""
        self._told_as = ""
        self.fd = fd
        self._place = place
        self._writers: dict[str, Writer] = {}
        self._streams: dict[str, Any] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, str] = {}
        self._finished = False
        self._inside: list[str] = []
        self._kept: tuple[str, ...] = ()
        self._replaced = -1
        """Directory of the images that will be replaced."""

    @property
    def place(self) -> Path:
        """Where it is being written."""
        return self._place

    @classmethod
    def create(cls, path: Path, *, replace: bool = False) -> Self:
        """Begin to write at `path`, which must not exist or be a directory without images.

        With `replace`, images that a finished dump has left there are taken away once the new
        ones are whole. Files that are not images (logs, what a runtime keeps there) stay.

        Raises: Refused when there are images; Denied, KernelError.
        """
        with translated("create", str(path)):
            if path.is_dir():
                return cls._begin_inside(path, replace)
            place = path.with_name(f"{path.name}.incomplete")
            place.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
            fd = _lock(place)
            if not place.exists() or not os.path.samestat(os.fstat(fd), place.stat()):
                os.close(fd)
                raise _busy(path)
            _clear(fd)
            return cls(path, place, fd)

    @classmethod
    def _begin_inside(cls, path: Path, replace: bool) -> Self:
        fd = _lock(path)
        try:
            names = os.listdir(fd)
            if INVENTORY in names and INCOMPLETE not in names and not replace:
                raise Refused(
                    "there are images already",
                    subject=str(path),
                    remedy="give a directory that is empty or does not exist",
                )
            if INVENTORY in names and INCOMPLETE not in names:
                return cls._begin_aside(path, fd)
            # the marker comes before the first change, so that a crash leaves no half dump
            _mark(fd)
            _clear(fd)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, path, fd)

    @classmethod
    def _begin_aside(cls, path: Path, lock: int) -> Self:
        place = path / ASIDE
        place.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _clear(fd)
        images = cls(path, place, fd)
        images._replaced = lock
        return images

    def create_file(self, name: str) -> int:
        """Descriptor of a new file, for raw bytes (pages); the caller closes it."""
        with translated("create", name):
            return os.open(checked_name(name), CREATE_FILE, FILE_MODE, dir_fd=self.fd)

    def grown(self, name: str, fd: int, size_bytes: int, *, whole: bool = False) -> None:
        """Say that so many bytes of a pages file are final."""
        if self.follower is not None:
            told_as = f"{self._told_as}{checked_name(name)}"
            self.follower.grown(told_as, fd, size_bytes, whole=whole)

    def catch_up(self) -> None:
        """Wait until who follows has all that was said."""
        if self.follower is not None:
            self.follower.catch_up()

    def digested(self, name: str, digest: str) -> None:
        """Say the digest (xxh64-256k) of a pages file, so that it is not read again."""
        self._digests[checked_name(name)] = digest

    def add(self, name: str, message: Message, payload: Buffer = b"") -> None:
        """Append an entry to the image `name`."""
        with translated("write", name):
            self.writer(name).add(message, payload)

    def add_from(
        self, name: str, message: Message, source: int, offset: int, size_bytes: int
    ) -> None:
        """Append an entry whose payload is read from descriptor `source`."""
        with translated("write", name):
            self.writer(name).add_from(message, source, offset, size_bytes)

    def write(self, name: str, messages: Iterable[Message]) -> None:
        """Write the image `name`, even if there are no messages."""
        with translated("write", name):
            writer = self.writer(name)
            for message in messages:
                writer.add(message)

    def link_parent(self, target: str) -> None:
        """Say where the dump is that has the pages which this one leaves out."""
        with translated("link", PARENT):
            os.symlink(target, PARENT, dir_fd=self.fd)

    def follow_round(self, number: int) -> None:
        """Say which round has the pages that this one, or these images, leave out."""
        self.extra("dump", rounds.LAST, number)

    @property
    def directories_inside(self) -> list[Path]:
        """Of the images that `inside` began, where they are at the end."""
        return [self.path / name for name in self._inside]

    def inside(self, name: str) -> "NewImageDirectory":
        """Images of a directory inside, which go when these are given up."""
        self._inside.append(name)
        images = NewImageDirectory.create(self.place / name)
        images.follower, images._told_as = self.follower, f"{self._told_as}{name}/"
        return images

    def pages_elsewhere(self) -> None:
        """Say that pages go to a page server, which may write them into this very directory."""
        self.extra("dump", PAGES_ELSEWHERE, True)
        self._kept = ("pagemap-", "pages-")

    def extra(self, section: str, key: str, value: Any) -> None:  # noqa: ANN401
        """Keep a JSON value for torpor.json."""
        self._facts.setdefault(section, {})[key] = value

    def begin(self, name: str) -> None:
        """Have the image there, also when it gets no entry."""
        self.writer(name)

    def writer(self, name: str) -> Writer:
        """The writer of the image `name`, opened at first use."""
        if name not in self._writers:
            kind = kind_of(name)
            if kind is None:
                raise Bug("no such kind of image", subject=name)
            stream = os.fdopen(self.create_file(name), "wb")
            self._streams[name] = stream
            self._writers[name] = Writer(stream, file_name(name), kind)
        return self._writers[name]

    def finish(self, *, durable: bool = True) -> Path:
        """Close all files, write torpor.json, and make the directory appear; returns `path`.

        `durable` has everything on the disk before it appears, unless a follower sees to that.
        """
        durable = durable and self.follower is None
        with translated("write", str(self.path)):
            self._close_streams()
            images = list_images(self.fd) - set(SERVICE)
            listed = {name: self._seal(name, durable) for name in images}
            if INVENTORY not in listed:
                raise Bug(f"{INVENTORY} was not written", subject=str(self.path))
            self._write_manifest(Manifest(files=listed, facts=self._facts), durable)
            if durable:
                os.fsync(self.fd)
            self._appear(durable)
        self._finished = True
        self._close()
        return self.path

    def abort(self) -> None:
        """Remove what was written; a directory that the caller made stays."""
        if self._finished or self.fd < 0:
            return
        for stream in self._streams.values():
            with suppress(OSError):  # a full disk takes no buffer; each is closed nevertheless
                stream.close()
        self._streams.clear()
        for name in self._inside:
            import shutil  # slow to import, seldom needed

            shutil.rmtree(self.place / name, ignore_errors=True)
        with suppress(OSError):
            _clear(self.fd)
            if self._place != self.path:
                self._place.rmdir()
            else:
                os.unlink(INCOMPLETE, dir_fd=self.fd)
        self._close()

    def _close(self) -> None:
        for fd in (self.fd, self._replaced):
            if fd >= 0:
                os.close(fd)
        self.fd = self._replaced = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _close_streams(self) -> None:
        for name, stream in self._streams.items():
            self._writers[name].finish()
            stream.close()
        self._streams.clear()

    def _seal(self, name: str, durable: bool) -> manifest.FileDigest:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            if durable:
                os.fsync(fd)
            if name in self._digests:
                return manifest.FileDigest(
                    size_bytes=os.fstat(fd).st_size,
                    digest=self._digests[name],
                    algorithm=manifest.XXH64,
                )
            return digest(fd, manifest.XXH64 if name.startswith("pages-") else manifest.SHA256)
        finally:
            os.close(fd)

    def _move_in(self) -> None:
        """Take the old images away and put the new ones there."""
        _mark(self._replaced)
        _clear(self._replaced, self._kept)
        for name in os.listdir(self.fd):
            os.rename(name, name, src_dir_fd=self.fd, dst_dir_fd=self._replaced)
        self._place.rmdir()
        os.unlink(INCOMPLETE, dir_fd=self._replaced)

    def _write_manifest(self, content: Manifest, durable: bool) -> None:
        fd = os.open(manifest.NAME, CREATE_FILE, FILE_MODE, dir_fd=self.fd)
        with os.fdopen(fd, "wb") as stream:
            stream.write(manifest.encode(content))
            stream.flush()
            if durable:
                os.fsync(stream.fileno())

    def _appear(self, durable: bool) -> None:
        if self._replaced >= 0:
            self._move_in()
            parent = os.dup(self._replaced)
        elif self._place != self.path:
            self._place.rename(self.path)
            parent = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            os.unlink(INCOMPLETE, dir_fd=self.fd)
            parent = os.dup(self.fd)
        try:
            if durable:
                os.fsync(parent)
        finally:
            os.close(parent)


def withdraw(path: Path) -> None:
    """Remove images that have appeared, and are of no use."""
    with translated("remove images from", str(path)):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _mark(fd)
            _clear(fd)
            os.unlink(INCOMPLETE, dir_fd=fd)
        finally:
            os.close(fd)


def _mark(fd: int) -> None:
    os.close(os.open(INCOMPLETE, os.O_CREAT | os.O_CLOEXEC, FILE_MODE, dir_fd=fd))


def _lock(path: Path) -> int:
    """Open a directory and lock it against other dumps."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise _busy(path) from error
    return fd


def _busy(path: Path) -> Refused:
    return Refused(
        "another dump writes there",
        subject=str(path),
        remedy="wait for it, or give another directory",
    )


def _clear(fd: int, kept: tuple[str, ...] = ()) -> None:
    """Remove images and our own file; the marker, foreign files and what begins so stay."""
    images = [name for name in list_images(fd) if not name.startswith(kept)]
    for name in [*images, manifest.NAME, PARENT]:
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=fd)

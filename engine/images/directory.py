# SPDX-License-Identifier: Apache-2.0
"""Reading an image directory: only known names, no links followed, digests checked.

A directory comes from a store, another node or a stranger. It is opened once; each file is opened
relative to it, without following links, and must be a regular file. An image is called by its
file's name without `.img`: `core-41`, `pages-1`, `stats-dump`.
"""

import errno
import os
import stat
from collections.abc import Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from google.protobuf.message import Message

from torpor.engine import native
from torpor.engine.closing import Closing
from torpor.engine.errors import BadImage, Bug
from torpor.engine.images import manifest, sha256, stale
from torpor.engine.images.failures import translated
from torpor.engine.images.format import Entry, read_entries
from torpor.engine.images.kinds import SERVICE, Kind, file_name, kind_of
from torpor.engine.images.manifest import IMAGE_NAME, FileDigest, Manifest

INCOMPLETE = "torpor.incomplete"
"""Marker of a dump that has not ended."""
INVENTORY = "inventory.img"
PAGES_ELSEWHERE = "pages_elsewhere"
"""Fact of a dump whose pages went to a page server: they may be put beside it."""
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
MAX_NAMES = 1 << 20

MessageT = TypeVar("MessageT", bound=Message)


class Verify(Enum):
    """How much of the digests `ImageDirectory.open` checks."""

    ALL = "all"
    WITHOUT_PAGES = "without-pages"
    """Sizes of all files, digests of all but pages-*.img."""
    NOTHING = "nothing"


class ImageDirectory(Closing):
    """An opened image directory. Use it in a `with` statement."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.manifest: Manifest | None = None
        self._names: frozenset[str] = frozenset()

    @classmethod
    def open(cls, path: Path, *, verify: Verify = Verify.ALL) -> Self:
        """Open `path`, check that its dump ended, and the digests if it has them.

        Raises: BadImage; Denied or KernelError when it cannot be read.
        """
        with translated("open", str(path)):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        images = cls(path, fd)
        try:
            images._load(verify)
        except BaseException:
            images.close()
            raise
        return images

    @property
    def names(self) -> tuple[str, ...]:
        """Images in the directory, sorted."""
        return tuple(sorted(name.removesuffix(".img") for name in self._names))

    @property
    def facts(self) -> manifest.Facts:
        """What torpor.json holds for the kinds; empty for CRIU's own directories."""
        return self.manifest.facts if self.manifest else {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and file_name(name) in self._names

    def entries(self, name: str, *, payloads: bool = True) -> Iterator[Entry]:
        """Yield the entries of an image; `payloads=False` gives only their places."""
        kind = kind_of(name)
        if kind is None:
            raise Bug("read as messages, but it has none", subject=name)
        return self._entries(name, kind, payloads)

    def messages(self, name: str, message_type: type[MessageT]) -> Iterator[MessageT]:
        """Yield the messages of one type of an image; none if there is no such image."""
        if name in self:
            for entry in self.entries(name, payloads=False):
                if isinstance(entry.message, message_type):
                    yield entry.message

    def message(self, name: str, message_type: type[MessageT]) -> MessageT:
        """The only message of an image.

        Raises: BadImage when there is none or more than one.
        """
        found = list(self.messages(name, message_type))
        if len(found) != 1:
            what = f"holds {len(found)} messages instead of one" if name in self else "is missing"
            raise BadImage(
                what, subject=file_name(name), remedy="take the images from an intact copy"
            )
        return found[0]

    def is_as_listed(self, name: str, listed: Manifest) -> bool:
        """Whether an image is there with the digest that a manifest lists."""
        expected = listed.files.get(file_name(name))
        if expected is None or name not in self:
            return False
        fd = self.open_file(name)
        try:
            return digest(fd, expected.algorithm) == expected
        finally:
            os.close(fd)

    def open_file(self, name: str) -> int:
        """Descriptor of an image, for its raw bytes; the caller closes it.

        Raises: BadImage when it is missing, a link or no regular file.
        """
        return self._open(checked_name(name))

    def close(self) -> None:
        """Give up the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _entries(self, name: str, kind: Kind, payloads: bool) -> Iterator[Entry]:
        with os.fdopen(self.open_file(name), "rb") as stream:
            yield from read_entries(stream, file_name(name), kind, payloads=payloads)

    def _open(self, name: str) -> int:
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise BadImage("is missing", subject=name) from error
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise BadImage("is not a regular file", subject=name) from error
            with translated("open", name):
                raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BadImage("is not a regular file", subject=name)
        return fd

    def _load(self, verify: Verify) -> None:
        present = list_images(self.fd)
        if INCOMPLETE in os.listdir(self.fd):
            raise BadImage(
                "the dump into it has not ended",
                subject=str(self.path),
                remedy="wait for it, or dump again",
            )
        if INVENTORY not in present:
            raise BadImage(
                "not an image directory", subject=str(self.path), cause=f"no {INVENTORY} in it"
            )
        self._names = present
        if manifest.NAME in os.listdir(self.fd):
            found = manifest.decode(self._read_manifest())
            if stale.is_stale(self, found):
                return
            self.manifest = found
            if verify is not Verify.NOTHING:
                self._verify(self.manifest, pages=verify is Verify.ALL)

    def _read_manifest(self) -> bytes:
        with os.fdopen(self._open(manifest.NAME), "rb") as stream:
            if os.fstat(stream.fileno()).st_size > manifest.MAX_BYTES:
                raise BadImage("is too long", subject=manifest.NAME)
            return stream.read()

    def _verify(self, listed: Manifest, *, pages: bool) -> None:
        elsewhere = listed.facts.get("dump", {}).get(PAGES_ELSEWHERE)
        for name in sorted(self._names - listed.files.keys() - set(SERVICE)):
            if elsewhere and name.startswith(("pagemap-", "pages-")):
                continue
            raise BadImage("is not listed in torpor.json", subject=name)
        if not pages:  # the rest is small
            for name, expected in listed.files.items():
                self._verify_file(name, expected, pages=False)
            return
        from concurrent.futures import ThreadPoolExecutor  # slow to import, not always needed

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            check = partial(self._verify_file, pages=True)
            for _ in pool.map(check, listed.files.keys(), listed.files.values()):
                pass

    def _verify_file(self, name: str, expected: FileDigest, *, pages: bool) -> None:
        fd = self._open(name)
        try:
            size = os.fstat(fd).st_size
            if size != expected.size_bytes:
                raise BadImage(
                    "size differs from torpor.json",
                    subject=f"{name}, byte {min(size, expected.size_bytes)}",
                    cause=f"{size} bytes, not {expected.size_bytes}",
                    remedy="take the images from an intact copy",
                )
            if pages or not name.startswith("pages-"):
                check_digest(name, digest(fd, expected.algorithm), expected)
        finally:
            os.close(fd)


def check_digest(name: str, found: FileDigest, expected: FileDigest) -> None:
    """Raise BadImage when the bytes of a file are not those of the dump."""
    if found != expected:
        raise BadImage(
            "digest differs from torpor.json",
            subject=name,
            cause="its bytes were changed after the dump",
            remedy="take the images from an intact copy",
        )


def list_images(directory: int) -> frozenset[str]:
    """Names of image files in a directory."""
    with translated("list", "the image directory"):
        names = os.listdir(directory)
    if len(names) > MAX_NAMES:
        raise BadImage(f"holds {len(names)} files", subject="image directory")
    return frozenset(name for name in names if IMAGE_NAME.fullmatch(name))


def digest(fd: int, algorithm: str = manifest.SHA256) -> FileDigest:
    """Size and digest of an open file."""
    if algorithm == manifest.XXH64:
        size = os.fstat(fd).st_size
        return FileDigest(size_bytes=size, digest=native.digest_file(fd), algorithm=algorithm)
    with os.fdopen(fd, "rb", buffering=0, closefd=False) as stream:
        stream.seek(0)
        found = sha256.of_file(stream)
        return FileDigest(size_bytes=stream.tell(), digest=found)


def checked_name(name: str) -> str:
    """File name of the image `name`, which must be one."""
    if not IMAGE_NAME.fullmatch(file_name(name)):
        raise Bug("not a name of an image", subject=repr(name)[:80])
    return file_name(name)

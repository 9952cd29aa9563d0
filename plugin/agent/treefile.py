# SPDX-License-Identifier: Apache-2.0
"""An archive of a directory tree: ``entries.jsonl`` and one ``data`` file beside it.

Not tar, since it must also say which names a directory does *not* have any more, keep
holes, and be checked as a whole before a byte is written. Entries come parents first. File
content lies in ``data`` as extents; files of a chunk's size or more begin at a chunk's
boundary, so that the store sees the same chunks the next time.

What is read is not trusted: see `read_entries`.
"""

import base64
import binascii
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Self

from torpor.engine.errors import BadImage

ENTRIES = "entries.jsonl"
DATA = "data"
ROOT = "."
KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")
"""Beginnings of the attributes that are archived."""
_ALIGN_BYTES = 4 << 20
_COPY_BYTES = 1 << 24
_LONGEST_LINE = 1 << 26
_LONGEST_PATH = 4095
_BIGGEST = 1 << 60
_LATEST_NS = (1 << 63) - 1


Grown = Callable[[int, int, bool], None]
"""Descriptor of the data file, how many bytes of it are final, and whether these are all."""


class Type(Enum):
    """Kind of a file."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"
    FIFO = "fifo"
    HARDLINK = "hardlink"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Bytes of a file at ``offset``, found in the data file at ``position``."""

    offset: int
    size_bytes: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of the tree. ``names``: all that a directory holds, also what is not archived."""

    path: str
    type: Type
    mode: int = 0
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    size_bytes: int = 0
    target: str = ""
    names: tuple[str, ...] | None = None
    extents: tuple[Extent, ...] = ()
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


class Writer:
    """Makes an archive in a new directory; to be used in a ``with``.

    ``grown`` is told of content while more is taken, and may take it out of the file.
    """

    def __init__(self, directory: Path, grown: Grown | None = None) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries = (directory / ENTRIES).open("x", encoding="ascii")
        self._data = os.open(
            directory / DATA, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        self._grown = grown
        self._end = 0
        self.count = 0
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self._entries.close()
            if self._grown is not None and error is None:
                self._grown(self._data, os.fstat(self._data).st_size, True)
        finally:
            os.close(self._data)

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        self._entries.write(encode(entry) + "\n")
        self.count += 1

    def copy(self, source: int, size_bytes: int) -> tuple[Extent, ...]:
        """Take the content of an open file, without its holes."""
        if size_bytes >= _ALIGN_BYTES:
            self._end = -(-self._end // _ALIGN_BYTES) * _ALIGN_BYTES
        extents = []
        for offset, length in data_ranges(source, size_bytes):
            copied = _copy(source, offset, self._data, self._end, length)
            if copied:
                extents.append(Extent(offset=offset, size_bytes=copied, position=self._end))
                self._end += copied
                self.size_bytes += copied
                if self._grown is not None:
                    self._grown(self._data, self._end, False)
        return tuple(extents)


def data_ranges(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what is no hole."""
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        if end > start:
            yield start, end - start
        offset = max(end, start + 1)


def extract(data: int, entry: Entry, target: int) -> None:
    """Write a file's content, with its holes, into an empty file.

    Raises:
        BadImage: the data file is too short.
    """
    os.truncate(target, entry.size_bytes)
    for extent in entry.extents:
        copied = _copy(data, extent.position, target, extent.offset, extent.size_bytes)
        if copied != extent.size_bytes:
            raise _bad("the data file is too short", entry.path)


def encode(entry: Entry) -> str:
    """One line of JSON; odd bytes of names become escaped surrogates."""
    record: dict[str, Any] = {
        "path": entry.path,
        "type": entry.type.value,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "atime": entry.atime_ns,
        "mtime": entry.mtime_ns,
    }
    if entry.type is Type.FILE:
        record["size"] = entry.size_bytes
        record["extents"] = [[e.offset, e.size_bytes, e.position] for e in entry.extents]
    if entry.target:
        record["target"] = entry.target
    if entry.names is not None:
        record["names"] = list(entry.names)
    if entry.xattrs:
        record["xattrs"] = {
            name: base64.b64encode(value).decode() for name, value in entry.xattrs.items()
        }
    return json.dumps(record, separators=(",", ":"), sort_keys=True)


def read_entries(directory: Path) -> Iterator[Entry]:
    """The checked entries of an archive.

    Every path is relative, plain and unique, lies below a directory that came before, and
    a hard link leads to a file that came before: nothing here can name a place outside.

    Raises:
        BadImage: with path and reason.
    """
    data_bytes = (directory / DATA).stat().st_size
    seen: dict[str, Type] = {}
    with (directory / ENTRIES).open("rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            entry = decode(line, data_bytes)
            _check_place(entry, seen)
            seen[entry.path] = entry.type
            yield entry


def decode(line: bytes, data_bytes: int) -> Entry:
    """Read and check one line by itself.

    Raises:
        BadImage: it is not what `encode` would write.
    """
    try:
        record = json.loads(line)
        entry = _from_record(record)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
        raise _bad(f"an entry cannot be read ({type(error).__name__}: {error})") from error
    _check_entry(entry, data_bytes)
    return entry


def _from_record(record: object) -> Entry:
    if not isinstance(record, dict):
        raise TypeError("no object")
    names = record.get("names")
    return Entry(
        path=_text(record["path"]),
        type=Type(record["type"]),
        mode=_number(record["mode"], 0o7777),
        uid=_number(record["uid"], (1 << 32) - 2),
        gid=_number(record["gid"], (1 << 32) - 2),
        atime_ns=_number(record["atime"], _LATEST_NS, -_LATEST_NS),
        mtime_ns=_number(record["mtime"], _LATEST_NS, -_LATEST_NS),
        size_bytes=_number(record.get("size", 0), _BIGGEST),
        target=_text(record.get("target", "")),
        names=None if names is None else tuple(_text(name) for name in _list(names)),
        extents=tuple(
            Extent(
                offset=_number(offset, _BIGGEST),
                size_bytes=_number(size, _BIGGEST),
                position=_number(position, _BIGGEST),
            )
            for offset, size, position in _list(record.get("extents", []))
        ),
        xattrs={
            _text(name): base64.b64decode(value, validate=True)
            for name, value in dict(record.get("xattrs", {})).items()
        },
    )


def _check_entry(entry: Entry, data_bytes: int) -> None:
    if entry.path != ROOT and not _is_plain(entry.path.split("/")):
        raise _bad("the path leads elsewhere", entry.path)
    if entry.type is Type.SYMLINK and not entry.target:
        raise _bad("a symbolic link has no target", entry.path)
    if any(not _is_plain([name]) for name in entry.names or ()):
        raise _bad("a name in the directory is none", entry.path)
    if any(not name.startswith(KEPT_XATTRS) for name in entry.xattrs):
        raise _bad("it has an attribute that is never archived", entry.path)
    end = 0
    for extent in entry.extents:
        if (
            extent.offset < end
            or extent.offset + extent.size_bytes > entry.size_bytes
            or extent.position + extent.size_bytes > data_bytes
        ):
            raise _bad("its content lies outside of the file", entry.path)
        end = extent.offset + extent.size_bytes


def _check_place(entry: Entry, seen: Mapping[str, Type]) -> None:
    if entry.path in seen:
        raise _bad("the path comes twice", entry.path)
    if entry.path == ROOT:
        if entry.type is not Type.DIRECTORY:
            raise _bad("the root is no directory")
        return
    if seen.get(entry.path.rpartition("/")[0] or ROOT) is not Type.DIRECTORY:
        raise _bad("it lies in no directory of the archive", entry.path)
    if entry.type is Type.HARDLINK and seen.get(entry.target) is not Type.FILE:
        raise _bad("a hard link leads to no file of the archive", entry.path)


def _is_plain(parts: Iterable[str]) -> bool:
    return all(part not in ("", ".", "..") and "/" not in part for part in parts)


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value or len(os.fsencode(value)) > _LONGEST_PATH:
        raise ValueError("no path")
    return value


def _number(value: object, highest: int, lowest: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ValueError(f"{value!r:.40} is out of range")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _copy(source: int, offset: int, target: int, position: int, length: int) -> int:
    """Copy within the kernel where it can; gives the bytes copied (fewer at end of file)."""
    done = 0
    use_kernel = True
    while done < length:
        step = min(length - done, _COPY_BYTES)
        if use_kernel:
            try:
                count = os.copy_file_range(source, target, step, offset + done, position + done)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                use_kernel = False
                continue
        else:
            piece = os.pread(source, step, offset + done)
            count = os.pwrite(target, piece, position + done) if piece else 0
        if count == 0:
            break
        done += count
    return done


def _bad(cause: str, path: str = "") -> BadImage:
    return BadImage(
        "the archived files cannot be trusted",
        subject=f"{ENTRIES}: {path!r:.200}" if path else ENTRIES,
        cause=cause,
        remedy="take the checkpoint anew; see who may write to the store",
    )

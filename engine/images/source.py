# SPDX-License-Identifier: Apache-2.0
"""An image directory as the kinds see it when they decode: files by type, entries, facts."""

from collections.abc import Iterator, Mapping
from typing import Any

from torpor.engine.errors import BadImage
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import FileId

MEMBERS: Mapping[str, str] = {
    "REG": "reg",
    "PIPE": "pipe",
    "FIFO": "fifo",
    "INETSK": "isk",
    "UNIXSK": "usk",
    "EVENTFD": "efd",
    "EVENTPOLL": "epfd",
    "INOTIFY": "ify",
    "SIGNALFD": "sgfd",
    "PACKETSK": "psk",
    "TTY": "tty",
    "FANOTIFY": "ffy",
    "NETLINKSK": "nlsk",
    "NS": "nsf",
    "TUNF": "tunf",
    "EXT": "ext",
    "TIMERFD": "tfd",
    "MEMFD": "memfd",
    "BPFMAP": "bpf",
    "PIDFD": "pidfd",
}
"""Member of file_entry that each of fd_types fills."""
BESIDE = "TUNF"
"""The type whose files have an entry REG of the same id besides (`files/tun.py`)."""


class Source:
    """The ImageSource of an opened directory."""

    def __init__(self, images: ImageDirectory) -> None:
        self._images = images
        self._files: dict[str, list[tuple[FileId, Any]]] | None = None

    def files(self, type_name: str) -> list[tuple[FileId, Any]]:
        """(id, message) of every file of a type of fd_types.

        Raises: BadImage.
        """
        if self._files is None:
            self._files = self._read_files()
        return self._files.get(type_name, [])

    def file_types(self) -> tuple[str, ...]:
        """Types of files that the directory holds, sorted."""
        if self._files is None:
            self._files = self._read_files()
        return tuple(sorted(self._files))

    def entries(self, name: str) -> Iterator[tuple[Any, bytes]]:
        """(message, payload) of an image; nothing when there is none."""
        if name in self._images:
            for entry in self._images.entries(name):
                yield entry.message, entry.payload

    def extra(self, section: str, key: str) -> Any:  # noqa: ANN401
        """What `NewImageDirectory.extra` kept, or None."""
        return self._images.facts.get(section, {}).get(key)

    def _read_files(self) -> dict[str, list[tuple[FileId, Any]]]:
        found: dict[str, list[tuple[FileId, Any]]] = {}
        seen: set[tuple[int, bool]] = set()
        for entry in self._images.messages("files", pb.file_entry):
            type_name = pb.fd_types.Name(entry.type)
            member = MEMBERS.get(type_name)
            if member is None or not entry.HasField(member):
                raise _bad(entry.id, f"is {type_name}, but its part is missing")
            message = getattr(entry, member)
            if message.id != entry.id:
                raise _bad(entry.id, f"calls itself {message.id} inside")
            known = entry.id, type_name == BESIDE
            if known in seen:
                raise _bad(entry.id, "is there twice")
            seen.add(known)
            found.setdefault(type_name, []).append((FileId(entry.id), message))
        return found


def _bad(number: int, what: str) -> BadImage:
    return BadImage(
        what,
        subject=f"files.img, file {number}",
        remedy="take the images from an intact copy, or dump again",
    )

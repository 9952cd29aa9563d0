# SPDX-License-Identifier: Apache-2.0
"""Framing of one image file: words of magic, length, message, payload.

Images come from strangers: lengths are checked against the file's size before memory is taken
for them, and what is wrong is told as BadImage with the file's name and the byte's offset.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from google.protobuf.message import DecodeError, EncodeError, Message

from torpor.engine.errors import BadImage, Bug
from torpor.engine.images.kinds import NO_PAYLOAD, REST, Expect, Grammar, Kind, payload_of

WORD = struct.Struct("<I")
MAX_MESSAGE_BYTES = 32 << 20
"""The longest messages are those of mm (a hundred bytes a mapping, 65530 mappings by default)."""
MAX_PAYLOAD_BYTES = 64 << 20
"""Longer payloads (ghost files) are read by offset, with `payloads=False`."""
COPY_BYTES = 1 << 20

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True, kw_only=True)
class Entry:
    """A message, and where in the file its payload lies; `payload` is empty if not asked for."""

    message: Message
    payload: bytes = b""
    payload_offset: int = 0
    payload_bytes: int = 0


def read_entries(
    stream: BinaryIO, name: str, kind: Kind, *, payloads: bool = True
) -> Iterator[Entry]:
    """Yield the entries of an image, checking all that the format promises.

    Raises: BadImage.
    """
    reader = _Reader(stream, name)
    reader.expect_magic(kind)
    grammar = kind.grammar()
    expected: Expect | None = next(grammar)
    while expected:
        if reader.at_end() and expected.may_end:
            return
        entry = reader.entry(expected.type, payloads=payloads)
        yield entry
        expected = _advance(grammar, entry.message)
    if not reader.at_end():
        raise reader.bad("bytes follow the last message")


class Writer:
    """Writes one image; `add` for each message, with its payload. The caller closes the stream."""

    def __init__(self, stream: BinaryIO, name: str, kind: Kind) -> None:
        self._stream = stream
        self._name = name
        self._grammar = kind.grammar()
        self._expected: Expect | None = next(self._grammar)
        if kind.family is not None:
            stream.write(WORD.pack(kind.family))
        stream.write(WORD.pack(kind.magic))

    def add(self, message: Message, payload: Buffer = b"") -> None:
        """Append a message and the bytes behind it."""
        view = memoryview(payload).cast("B")
        padding = self._begin(message, view.nbytes)
        self._stream.write(view)
        self._stream.write(bytes(padding))

    def add_from(self, message: Message, source: int, offset: int, size_bytes: int) -> None:
        """Append a message, and a payload that is read from descriptor `source`."""
        padding = self._begin(message, size_bytes)
        while size_bytes:
            piece = os.pread(source, min(size_bytes, COPY_BYTES), offset)
            if not piece:
                raise Bug("file ended while it was copied", subject=f"{self._name}, byte {offset}")
            self._stream.write(piece)
            offset += len(piece)
            size_bytes -= len(piece)
        self._stream.write(bytes(padding))

    def _begin(self, message: Message, payload_bytes: int) -> int:
        """Write the message's frame and return the padding its payload needs."""
        if self._expected is None or type(message) is not self._expected.type:
            raise Bug(f"{type(message).__name__} does not belong here", subject=self._name)
        wanted = payload_of(message)
        if wanted.size not in (REST, payload_bytes):
            raise Bug(
                f"{type(message).__name__} says {wanted.size} bytes follow, not {payload_bytes}",
                subject=self._name,
            )
        try:
            body = message.SerializeToString()
        except EncodeError as error:
            raise Bug(
                f"{type(message).__name__} is not complete", subject=self._name, cause=str(error)
            ) from error
        self._stream.write(WORD.pack(len(body)))
        self._stream.write(body)
        self._expected = _advance(self._grammar, message)
        return wanted.padding

    def finish(self) -> None:
        """Check that the file may end here."""
        if self._expected is not None and not self._expected.may_end:
            raise Bug(f"{self._expected.type.__name__} is missing", subject=self._name)


def _advance(grammar: Grammar, message: Message) -> Expect | None:
    try:
        return grammar.send(message)
    except StopIteration:
        return None


class _Reader:
    """A stream that knows its size and its place."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._size = stream.seek(0, os.SEEK_END)
        self._offset = stream.seek(0)

    def bad(self, what: str, *, cause: str = "", offset: int | None = None) -> BadImage:
        at = self._offset if offset is None else offset
        return BadImage(
            what,
            subject=f"{self._name}, byte {at}",
            cause=cause,
            remedy="take the images from an intact copy, or dump again",
        )

    def at_end(self) -> bool:
        return self._offset == self._size

    def take(self, size: int, what: str) -> bytes:
        left = self._size - self._offset
        if size > left:
            raise self.bad(f"file is cut short: {what} needs {size} bytes, {left} are left")
        data = self._stream.read(size)
        if len(data) != size:
            raise self.bad("file shrank while it was read")
        self._offset += size
        return data

    def word(self, what: str) -> int:
        return int(WORD.unpack(self.take(WORD.size, what))[0])

    def expect_magic(self, kind: Kind) -> None:
        for wanted in (kind.family, kind.magic):
            if wanted is None:
                continue
            start = self._offset
            if (found := self.word("magic")) != wanted:
                raise self.bad(
                    f"not an image of kind {kind.name}",
                    cause=f"magic is {found:#010x}, not {int(wanted):#010x}",
                    offset=start,
                )

    def _body(self, what: str) -> bytes:
        """A message's bytes, behind their count."""
        start, left = self._offset, self._size - self._offset - WORD.size
        if left >= 0:  # nearly always all is well, and there are many messages
            (size,) = WORD.unpack(self._stream.read(WORD.size))
            if size <= min(left, MAX_MESSAGE_BYTES):
                body = self._stream.read(size)
                if len(body) == size:
                    self._offset = start + WORD.size + size
                    return body
            self._stream.seek(start)
        size = self.word("length of a message")
        if size > MAX_MESSAGE_BYTES:
            raise self.bad(f"message claims {size} bytes", offset=start)
        return self.take(size, what)

    def entry(self, message_type: type[Message], *, payloads: bool) -> Entry:
        start = self._offset
        body = self._body(message_type.__name__)
        message = message_type()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise self.bad(
                f"not a {message_type.__name__}", cause=str(error), offset=start
            ) from error
        if not message.IsInitialized():
            raise self.bad(f"{message_type.__name__} lacks a required field", offset=start)
        return self._with_payload(message, payloads=payloads)

    def _with_payload(self, message: Message, *, payloads: bool) -> Entry:
        wanted = payload_of(message)
        if wanted is NO_PAYLOAD:
            return Entry(message=message, payload_offset=self._offset)
        start = self._offset
        size = self._size - start if wanted.size == REST else wanted.size
        data = b""
        if payloads:
            if size > MAX_PAYLOAD_BYTES:
                raise self.bad(f"payload of {size} bytes is too long to be read at once")
            data = self.take(size, f"payload of {type(message).__name__}")
        else:
            self._skip(size, f"payload of {type(message).__name__}")
        self.take(wanted.padding, "padding")
        return Entry(message=message, payload=data, payload_offset=start, payload_bytes=size)

    def _skip(self, size: int, what: str) -> None:
        left = self._size - self._offset
        if size > left:
            raise self.bad(f"file is cut short: {what} needs {size} bytes, {left} are left")
        self._offset = self._stream.seek(size, os.SEEK_CUR)

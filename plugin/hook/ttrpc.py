# SPDX-License-Identifier: Apache-2.0
"""ttrpc in the multiplexed frames of an NRI socket, as much as a plugin needs.

Outside in, all integers big endian:

    mux      u32 connection (1: calls to the plugin, 2: calls to the runtime), u32 length, bytes
    ttrpc    u32 length, u32 stream, u8 type (1 request, 2 response), u8 flags, bytes
    body     TtrpcRequest or TtrpcResponse (plugin/proto/nri.proto)

A ttrpc message may span mux frames. Streams that a client opens have odd, ascending numbers.
"""

import socket
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message

from torpor.engine.errors import Unavailable
from torpor.plugin.proto import nri_pb2 as pb

TO_PLUGIN = 1
TO_RUNTIME = 2
REQUEST = 1
RESPONSE = 2
CODE_INTERNAL = 13
CODE_UNIMPLEMENTED = 12
FRAME_LIMIT = 1 << 22
MESSAGE_LIMIT = 1 << 24

_MUX = struct.Struct(">II")
_HEADER = struct.Struct(">IIBB")

Handler = Callable[[bytes], Message]


class Frame(NamedTuple):
    """One ttrpc message."""

    connection: int
    stream: int
    kind: int
    body: bytes


class Channel:
    """Both directions of one NRI socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._partial: dict[int, bytearray] = {TO_PLUGIN: bytearray(), TO_RUNTIME: bytearray()}
        self._stream = -1

    def call(self, service: str, method: str, message: Message) -> int:
        """Send a request to the runtime; its answer comes by :meth:`receive`."""
        self._stream += 2
        request = pb.TtrpcRequest(
            service=service, method=method, payload=message.SerializeToString()
        )
        self._send(TO_RUNTIME, self._stream, REQUEST, request)
        return self._stream

    def answer(self, frame: Frame, handlers: Mapping[str, Handler]) -> str:
        """Serve one request of the runtime; the name of the method."""
        request = pb.TtrpcRequest()
        response = pb.TtrpcResponse()
        try:
            request.ParseFromString(frame.body)
            handler = handlers.get(request.method)
            if handler is None:
                response.status.code = CODE_UNIMPLEMENTED
                response.status.message = f"{request.method} is not implemented"
            else:
                response.payload = handler(request.payload).SerializeToString()
        except DecodeError as error:
            response.status.code = CODE_INTERNAL
            response.status.message = f"cannot be understood: {error}"
        self._send(TO_PLUGIN, frame.stream, RESPONSE, response)
        return request.method

    def receive(self) -> Frame:
        """The next message.

        Raises:
            Unavailable: the runtime closed the socket or sent what is no frame.
            OSError: the socket failed.
        """
        while True:
            for connection, partial in self._partial.items():
                frame = _take(connection, partial)
                if frame is not None:
                    return frame
            connection, length = _MUX.unpack(self._exactly(_MUX.size))
            if connection not in self._partial or length > FRAME_LIMIT:
                raise broken(f"frame of {length} bytes for connection {connection}")
            self._partial[connection] += self._exactly(length)

    def _send(self, connection: int, stream: int, kind: int, body: Message) -> None:
        data = body.SerializeToString()
        message = _HEADER.pack(len(data), stream, kind, 0) + data
        self._socket.sendall(_MUX.pack(connection, len(message)) + message)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise broken("it closed the socket")
            data += part
        return bytes(data)


def _take(connection: int, partial: bytearray) -> Frame | None:
    """The first whole message of a connection's bytes."""
    if len(partial) < _HEADER.size:
        return None
    length, stream, kind, _ = _HEADER.unpack_from(partial)
    if length > MESSAGE_LIMIT:
        raise broken(f"message of {length} bytes")
    end = _HEADER.size + length
    if len(partial) < end:
        return None
    body = bytes(partial[_HEADER.size : end])
    del partial[:end]
    return Frame(connection, stream, kind, body)


def broken(cause: str) -> Unavailable:
    """The runtime does not keep to the protocol, or has left."""
    return Unavailable(
        "the runtime ended the conversation",
        subject="NRI",
        cause=cause,
        remedy="see the runtime's log",
    )

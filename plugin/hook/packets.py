# SPDX-License-Identifier: Apache-2.0
"""The hook's front for clients without gRPC: one protobuf message a packet.

A connection is one call: a `Call` comes in, `Answer`s go out until the one that ends it.
Packets of a SOCK_SEQPACKET socket keep their boundaries, so there is no framing to get wrong;
a packet that is longer than the limit, or is no `Call`, ends the connection with a refusal.
"""

import contextlib
import logging
import socket
import threading
from pathlib import Path

from google.protobuf.message import DecodeError

from torpor.engine.errors import Error, Refused
from torpor.plugin.hook.backend import Backend, refusal
from torpor.plugin.hook.caller import Caller, Waiting, identify
from torpor.plugin.proto import hook_pb2 as pb

log = logging.getLogger(__name__)

PACKET_LIMIT = 16384
FIRST_PACKET_S = 5.0
CALLS_AT_ONCE = 64
TEXT_LIMIT = 4096
"""Longest text sent, so that an answer always fits into a packet."""


class PacketFront:
    """Listens, and answers each connection in a thread of its own."""

    def __init__(self, path: Path, backend: Backend, waiting: Waiting) -> None:
        self._path = path
        self._backend = backend
        self._waiting = waiting
        self._places = threading.BoundedSemaphore(CALLS_AT_ONCE)
        self._socket = listen(path, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._accept, name="hook-packets", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more; calls that run end by themselves."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                log.warning("hook: a call was refused, %d are being answered", CALLS_AT_ONCE)
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except OSError as error:
            log.info("hook: a caller hung up: %s", error.strerror or error)
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(FIRST_PACKET_S)
        try:
            caller = identify(connection)
            call = _read_call(connection)
            if call.WhichOneof("call") == "health":
                connection.send(pb.Answer(health=self._backend.health()).SerializeToString())
                return
            self._checkpoint(connection, caller, call.checkpoint)
        except Error as error:
            log.warning("hook: refused: %s", error)
            _send(connection, refusal(error))

    def _checkpoint(
        self, connection: socket.socket, caller: Caller, request: pb.CheckpointRequest
    ) -> None:
        with self._waiting.while_answering(caller):
            for event in self._backend.checkpoint(caller, request):
                _send(connection, event)


def listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    """A listening Unix socket at ``path`` that everybody may connect to.

    Who may ask is decided by what the kernel says of the caller, not by the file's mode.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(CALLS_AT_ONCE)
    except OSError:
        listener.close()
        raise
    return listener


def _read_call(connection: socket.socket) -> pb.Call:
    data, _, flags, _ = connection.recvmsg(PACKET_LIMIT)
    cause = ""
    call = pb.Call()
    try:
        call.ParseFromString(data)
    except DecodeError:
        cause = "it is no protobuf message"
    if flags & socket.MSG_TRUNC:
        cause = f"it is longer than {PACKET_LIMIT} bytes"
    elif not cause and call.WhichOneof("call") is None:
        cause = "it names no call"
    if cause:
        raise Refused(
            "the packet is no call of the hook",
            subject="hook",
            cause=cause,
            remedy="use torpor-hook of the same release",
        )
    return call


def _send(connection: socket.socket, event: pb.CheckpointEvent) -> None:
    if event.WhichOneof("event") == "result":
        event.result.message = event.result.message[:TEXT_LIMIT]
    else:
        event.progress.text = event.progress.text[:TEXT_LIMIT]
    connection.send(pb.Answer(event=event).SerializeToString())

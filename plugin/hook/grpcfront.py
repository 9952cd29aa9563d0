# SPDX-License-Identifier: Apache-2.0
"""The hook's gRPC front, which knows its callers.

grpcio shows a service only the address that its peer's socket is bound to, and clients of Unix
sockets are bound to none; the peer's credentials stay inside. So gRPC listens on a socket that
nobody else can reach, and this front stands before it: it accepts, asks the kernel who connected,
binds a socket to a random name, connects that to the inner one, and carries the bytes. The name
is what the service sees as peer (`unix-abstract:NAME`), and the front knows whose it is.
A name that the front did not give is refused.
"""

import contextlib
import logging
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from torpor.engine.errors import Denied, Error
from torpor.plugin.hook.backend import Backend, refusal
from torpor.plugin.hook.caller import Caller, Waiting, identify
from torpor.plugin.hook.packets import CALLS_AT_ONCE, listen
from torpor.plugin.proto import hook_pb2 as pb
from torpor.plugin.proto.hook_pb2_grpc import HookServicer, add_HookServicer_to_server

log = logging.getLogger(__name__)

CHUNK_BYTES = 65536
INNER_PREFIX = "unix-abstract:"


class Callers:
    """Who stands behind which inner connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Caller] = {}

    def add(self, caller: Caller) -> str:
        """A fresh name for a caller's inner connection."""
        name = f"torpor-hook-{secrets.token_hex(16)}"
        with self._lock:
            self._known[name] = caller
        return name

    def remove(self, name: str) -> None:
        """The connection is gone."""
        with self._lock:
            self._known.pop(name, None)

    def behind(self, peer: str) -> Caller:
        """The caller of a gRPC peer.

        Raises:
            Denied: the connection did not come through the front.
        """
        with self._lock:
            caller = self._known.get(peer.removeprefix(INNER_PREFIX))
        if caller is None or not peer.startswith(INNER_PREFIX):
            raise Denied("the caller is not known", subject="hook", cause=f"peer {peer}")
        return caller


class HookService(HookServicer):
    """The service itself."""

    def __init__(self, backend: Backend, callers: Callers, waiting: Waiting) -> None:
        self._backend = backend
        self._callers = callers
        self._waiting = waiting

    def Checkpoint(
        self, request: pb.CheckpointRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CheckpointEvent]:
        """Progress, then a result."""
        try:
            caller = self._callers.behind(context.peer())
            with self._waiting.while_answering(caller):
                yield from self._backend.checkpoint(caller, request)
        except Error as error:
            log.warning("hook: refused: %s", error)
            yield refusal(error)

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthReply:
        """That the service lives."""
        del request, context
        return self._backend.health()


class GrpcFront:
    """The outer socket, the inner server, and the threads that carry bytes between them."""

    def __init__(self, path: Path, backend: Backend, waiting: Waiting) -> None:
        self._path = path
        self._callers = Callers()
        self._private = Path(tempfile.mkdtemp(prefix="torpor-hook-"))  # mode 0700
        self._inner = self._private / "grpc.sock"
        self._server = grpc.server(ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="hook"))
        add_HookServicer_to_server(  # type: ignore[no-untyped-call]
            HookService(backend, self._callers, waiting), self._server
        )
        self._server.add_insecure_port(f"unix:{self._inner}")
        self._socket = listen(path, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._accept, name="hook-grpc", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()
        self._thread.start()

    def stop(self) -> None:
        """Accept no more and cut the calls that run."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        self._server.stop(grace=None).wait()
        self._path.unlink(missing_ok=True)
        shutil.rmtree(self._private, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(outer,), daemon=True).start()

    def _carry(self, outer: socket.socket) -> None:
        """One connection, until either end closes."""
        with outer, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as inner:
            try:
                name = self._callers.add(identify(outer))
            except Denied as error:
                log.warning("hook: refused: %s", error)
                return
            try:
                inner.bind(b"\0" + name.encode())
                inner.connect(str(self._inner))
                back = threading.Thread(target=_pump, args=(inner, outer), daemon=True)
                back.start()
                _pump(outer, inner)
                back.join()
            except OSError as error:
                log.warning("hook: a connection failed: %s", error.strerror or error)
            finally:
                self._callers.remove(name)


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes until the end, then say so to both sides."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

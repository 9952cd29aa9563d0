# SPDX-License-Identifier: Apache-2.0
"""CRIU's RPC: one message a packet, over a socket that keeps packets apart (SOCK_SEQPACKET).

Facts (criu 4.2.1, tried): a request whose type is none is answered by EMPTY, one that is no message
by the end of the connection. Descriptors that a request names are those of the other side: they
are opened by /proc/PID/fd/N, PID being what SO_PEERCRED tells. A notification is answered by a
request of type NOTIFY; anything else, and `notify_success` false, ends the dump or restore.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message

from torpor.engine.errors import Error, Refused
from torpor.engine.images.failures import translated
from torpor.engine.images.proto import rpc_pb2 as pb

PACKET_LIMIT = 1 << 20
EBADRQC = 56
"""What CRIU answers to options that it does not take."""
SO_PEERGROUPS = 59
UCRED = struct.Struct("iII")
GROUP = struct.Struct("I")
GROUPS_ROOM = 1024
"""All that Python gives to an option of a socket: 256 groups."""
WITH_PID = ("post-restore", "setup-namespaces")
"""Stages whose notification tells the pid of the root."""


class BadRequest(Refused):
    """No request, or one with options that are not taken."""

    cr_errno = EBADRQC


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of a connection."""

    pid: int
    uid: int
    gid: int
    lends: bool = False
    """It has not started us, so what it wants to be inherited is taken from it."""

    def descriptor(self, number: int) -> str:
        """Path of one of its descriptors."""
        return f"/proc/{self.pid}/fd/{number}"

    def inherited(self, number: int) -> int:
        """A descriptor of its, as one of ours (pidfd_getfd(2)): sockets cannot be opened by path.

        Raises: BadRequest.
        """
        if not self.lends:
            return number
        from torpor.engine import native

        try:
            pidfd = os.pidfd_open(self.pid)
            try:
                return native.pidfd_getfd(pidfd, number)
            finally:
                os.close(pidfd)
        except (OSError, Error) as error:
            raise BadRequest("the descriptor cannot be had", subject=self.descriptor(number),
                             cause=str(error)) from error  # fmt: skip


class Conversation:
    """Requests from one caller, and what is said to it."""

    def __init__(self, connection: socket.socket, *, lends: bool = False) -> None:
        self._socket = connection
        with translated("ask who calls", "RPC socket"):
            pid, uid, gid = UCRED.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
            )
        self.peer = Peer(pid=pid, uid=uid, gid=gid, lends=lends)

    def groups(self) -> list[int]:
        """Supplementary groups of the peer, when it connected."""
        with translated("ask who calls", "RPC socket"):
            data = self._socket.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_ROOM)
        return [group for (group,) in GROUP.iter_unpack(data)]

    def request(self) -> "pb.criu_req | None":
        """The next request; None when the caller has hung up.

        Raises: BadRequest.
        """
        with translated("read a request", "RPC socket"):
            packet = self._socket.recv(PACKET_LIMIT)
        return decode(packet) if packet else None

    def answer(self, response: "pb.criu_resp") -> None:
        """Send a response."""
        with translated("answer", "RPC socket"):
            self._socket.sendall(response.SerializePartialToString())

    def notify(self, stage: str, root: int | None) -> "pb.criu_req | None":
        """Tell of a stage; what the caller says to it, None when it does not want to go on."""
        told = pb.criu_resp(type=pb.NOTIFY, success=True)
        told.notify.script = stage
        if root is not None and stage in WITH_PID:
            told.notify.pid = root
        self.answer(told)
        reply = self.request()
        if reply is None or reply.type != pb.NOTIFY or not reply.notify_success:
            return None
        return reply

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def decode(packet: bytes) -> "pb.criu_req":
    """A request.

    Raises: BadRequest.
    """
    request = pb.criu_req()
    try:
        request.MergeFromString(packet)
    except DecodeError as error:
        raise BadRequest("no request of CRIU's RPC", subject="RPC socket",
                         remedy="send one criu_req a packet") from error  # fmt: skip
    _check_texts(request)
    return request


def _check_texts(message: Message) -> None:
    """Refuse texts that are not UTF-8: protobuf gives bytes for them, to be taken for no text."""
    for field, value in message.ListFields():
        for one in (value,) if isinstance(value, (str, bytes, Message)) else _items(value):
            if isinstance(one, Message):
                _check_texts(one)
            elif isinstance(one, bytes):
                raise BadRequest("a text that is not UTF-8", subject=field.name,
                                 remedy="give paths as descriptors, or in UTF-8")  # fmt: skip


def _items(value: object) -> Iterable[object]:
    return value if isinstance(value, Iterable) else ()


def response(kind: "pb.criu_req_type", error: Error | None = None) -> "pb.criu_resp":
    """A response; with an error it tells of a failure."""
    answer = pb.criu_resp(type=kind, success=error is None)
    if kind in (pb.DUMP, pb.SINGLE_PRE_DUMP):
        answer.dump.restored = False
    if error is not None:
        if kind == pb.RESTORE:
            answer.restore.pid = -1
        if error.cr_errno:
            answer.cr_errno = error.cr_errno
        answer.cr_errmsg = str(error)
    return answer


@contextmanager
def as_bad_request() -> Iterator[None]:
    """What is refused before anything began is a matter of the options."""
    try:
        yield
    except BadRequest:
        raise
    except Refused as error:
        raise BadRequest(
            error.what, subject=error.subject, cause=error.cause, remedy=error.remedy
        ) from error


def become(peer: Peer, groups: list[int]) -> None:
    """Take the identity of a caller who is not root: the kernel then says what it may.

    Facts (credentials(7), prctl(2)): all capabilities go with the last uid that is 0, and what is
    below /proc/self belongs to root afterwards unless PR_SET_DUMPABLE is set again.
    """
    from torpor.engine.kernel.rights import call

    with translated("become", f"uid {peer.uid}"):
        os.setgroups(groups)
        os.setresgid(peer.gid, peer.gid, peer.gid)
        os.setresuid(peer.uid, peer.uid, peer.uid)
    call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    os.environ.pop("HOME", None)  # it is not the caller's

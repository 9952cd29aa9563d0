# SPDX-License-Identifier: Apache-2.0
"""Client of the pid helper: the next task made in a container gets the pid we want, and filters.

The helper is a program of its own with the one capability that this takes; the messages are
those of native/include/torpor/pidhelper.h.
"""

import errno
import os
import socket
import struct
from pathlib import Path

from torpor.engine.errors import Denied, Error, KernelError, Timeout, Unavailable, Vanished

CHOOSE, FILTER = 1, 2
DEFAULT_SOCKET = Path("/run/torpor/pidhelper.sock")
_REQUEST = struct.Struct("=Iii")
_REPLY = struct.Struct("=i")
_FILTER = struct.Struct("=iIQ")
_INSTRUCTION_BYTES, _MOST_INSTRUCTIONS = 8, 4096


class PidHelper:
    """Asks the helper; one connection a request, so that a helper that restarts is no matter."""

    def __init__(self, path: Path = DEFAULT_SOCKET, *, timeout_s: float = 5.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def choose(self, pid: int, want: int) -> None:
        """Have the next clone in the pid namespace of ``pid`` get ``want``.

        Raises:
            Denied: the helper refuses.
            Vanished: the task is gone.
            Unavailable: there is no helper.
            Timeout: it does not answer.
        """
        subject = f"pid {want} in the namespace of process {pid}"
        answer = self._ask(CHOOSE, pid, want, subject)
        if len(answer) != _REPLY.size:
            raise _hung_up(answer, subject)
        (number,) = _REPLY.unpack(answer)
        if number:
            raise _refused(abs(number), subject)

    def filter(self, tid: int, index: int) -> tuple[bytes, int]:
        """A seccomp filter of a thread in a container, which stands still for it for a moment.

        Program and flags, see `ReadFilter`.

        Raises:
            Denied: the helper refuses, or has a filter itself.
            Vanished: the thread is gone.
            Unavailable: there is no helper.
            Timeout: it does not answer.
            KernelError: the thread is traced, does not stop, or has no such filter.
        """
        subject = f"seccomp filter {index} of thread {tid}"
        answer = self._ask(FILTER, tid, index, subject)
        if len(answer) == _REPLY.size:
            (number,) = _REPLY.unpack(answer)
            raise _refused(abs(number), subject)
        if len(answer) < _FILTER.size:
            raise _hung_up(answer, subject)
        _, count, flags = _FILTER.unpack_from(answer)
        program = answer[_FILTER.size :]
        if len(program) != count * _INSTRUCTION_BYTES:
            raise _hung_up(answer, subject)
        return program, flags

    def _ask(self, what: int, pid: int, number: int, subject: str) -> bytes:
        room = _FILTER.size + _MOST_INSTRUCTIONS * _INSTRUCTION_BYTES + 1
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(self._timeout_s)
                sock.connect(str(self._path))
                sock.send(_REQUEST.pack(what, pid, number))
                return sock.recv(room)
        except TimeoutError as error:
            raise Timeout(
                f"the pid helper did not answer within {self._timeout_s:g} s",
                subject=subject,
                remedy="look at the log of the agent's container pidhelper",
            ) from error
        except OSError as error:
            raise Unavailable(
                "the pid helper cannot be reached",
                subject=str(self._path),
                cause=error.strerror or str(error),
                remedy="see whether the agent's container pidhelper runs",
            ) from error


def _hung_up(answer: bytes, subject: str) -> Error:
    return Unavailable(
        "the pid helper hung up",
        subject=subject,
        cause=f"{len(answer)} bytes came back",
        remedy="look at the log of the agent's container pidhelper",
    )


def _refused(number: int, subject: str) -> Error:
    if number in (errno.ESRCH, errno.ENOENT):
        return Vanished("the container is gone", subject=subject, remedy="try again")
    if number in (errno.EPERM, errno.EACCES):
        return Denied(
            "the pid helper refused",
            subject=subject,
            cause=os.strerror(number),
            remedy="look at the log of the agent's container pidhelper",
        )
    return KernelError("the pid helper failed", errno=number, subject=subject)

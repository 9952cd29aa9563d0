# SPDX-License-Identifier: Apache-2.0
"""Client of the pid helper: the next task made in a container gets the pid we want.

The helper is a program of its own with the one capability that this takes; the messages are
those of native/include/torpor/pidhelper.h.
"""

import errno
import os
import socket
import struct
from pathlib import Path

from torpor.engine.errors import Denied, Error, KernelError, Timeout, Unavailable, Vanished

VERSION = 1
DEFAULT_SOCKET = Path("/run/torpor/pidhelper.sock")
_REQUEST = struct.Struct("=Iii")
_REPLY = struct.Struct("=i")


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
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(self._timeout_s)
                sock.connect(str(self._path))
                sock.send(_REQUEST.pack(VERSION, pid, want))
                answer = sock.recv(_REPLY.size + 1)
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
        if len(answer) != _REPLY.size:
            raise Unavailable(
                "the pid helper hung up",
                subject=subject,
                cause=f"{len(answer)} bytes came back",
                remedy="look at the log of the agent's container pidhelper",
            )
        (number,) = _REPLY.unpack(answer)
        if number:
            raise _refused(abs(number), subject)


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
    return KernelError("the pid cannot be chosen", errno=number, subject=subject)

# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a Unix socket, as the kernel says it.

Facts: SO_PEERCRED gives pid, uid and gid of the process that connected, in the reader's
namespaces (unix(7)); a pid of 0 is a process that the reader cannot see. The pid may be reused
once that process has ended: SO_PEERPIDFD (Linux 6.5) names the process itself, and a pidfd
becomes readable when it ends (pidfd_open(2)). The container of a process is a component of
its cgroup path, as in ``plugin/agent/locate.py``.
"""

import contextlib
import os
import re
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import Denied

SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h
_CREDENTIALS = struct.Struct("=iII")
_CONTAINER = re.compile(r"(?:^|[-/:])([0-9a-f]{64})(?:\.scope)?(?=/|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A process that asks; ``container_id`` is empty for a process of the node itself."""

    pid: int
    uid: int
    container_id: str

    def __str__(self) -> str:
        """For logs."""
        where = f"container {self.container_id[:12]}" if self.container_id else "node"
        return f"pid {self.pid}, uid {self.uid}, {where}"


class Waiting:
    """Callers that wait for an answer right now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers: list[Caller] = []

    @contextlib.contextmanager
    def while_answering(self, caller: Caller) -> Iterator[None]:
        """The caller waits for as long as this lasts."""
        with self._lock:
            self._callers.append(caller)
        try:
            yield
        finally:
            with self._lock:
                self._callers.remove(caller)

    def pids_in(self, container_id: str) -> frozenset[int]:
        """Processes of a container that wait; they are no part of its workload."""
        with self._lock:
            return frozenset(c.pid for c in self._callers if c.container_id == container_id)


def identify(connection: socket.socket, proc: Path = Path("/proc")) -> Caller:
    """Who connected.

    Raises:
        Denied: it cannot be seen, or ended while we looked.
    """
    size = _CREDENTIALS.size
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if pid <= 0:
        raise _denied(pid, "it is in a pid namespace that the service cannot see")
    handle = _peer_handle(connection, pid)
    try:
        text = (proc / str(pid) / "cgroup").read_text()
        if select.select([handle], [], [], 0)[0]:
            raise _denied(pid, "it ended before it was known")
    except OSError as error:
        raise _denied(pid, f"its control groups cannot be read ({error.strerror})") from error
    finally:
        os.close(handle)
    return Caller(pid=pid, uid=uid, container_id=container_of(text))


def container_of(cgroup_text: str) -> str:
    """Id of the innermost container in a text of /proc/PID/cgroup, or nothing."""
    found = [match[1] for match in _CONTAINER.finditer(cgroup_text)]
    return found[-1] if found else ""


def _peer_handle(connection: socket.socket, pid: int) -> int:
    """A pidfd of the peer; before Linux 6.5 one of whoever has its pid now."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        try:
            return os.pidfd_open(pid)
        except OSError as error:
            raise _denied(pid, f"it has ended ({error.strerror})") from error


def _denied(pid: int, cause: str) -> Denied:
    return Denied(
        "the caller is not known",
        subject=f"hook, peer {pid}",
        cause=cause,
        remedy="call from a process of this node and wait for the answer",
    )

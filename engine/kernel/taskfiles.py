# SPDX-License-Identifier: Apache-2.0
"""What the views of one task have in common: pidfd, root, working directory, namespace."""

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress

from torpor.engine import native
from torpor.engine.errors import Bug, Refused
from torpor.engine.kernel import fdcalls, netlink, repair
from torpor.engine.kernel.fdtexts import ns_pid_of, same_netns, topmost, translated

NetnsSocket = Callable[[int, int], int]
"""(pid, netlink protocol) → a raw netlink socket in that task's network namespace, ours to
close. The dump makes it by an injected socket(2) and pidfd_getfd."""


class TaskFiles:
    """What the views of one task have in common: pidfd, root, working directory, namespace."""

    def __init__(
        self,
        pid: int,
        ns_pid: int | None = None,
        netns_socket: NetnsSocket | None = None,
        guard: repair.Guard | None = None,
    ) -> None:
        self.pid = pid
        self.ns_pid = ns_pid_of(pid) if ns_pid is None else ns_pid
        self.netns_socket, self.guard = netns_socket, guard
        self._opened: dict[str, int] = {}
        self._netlink: dict[int, int] = {}
        self.magics: dict[int, int] = {}
        """Mount → its file system."""
        self.closing = ExitStack()
        """What else is to be closed in the end."""
        self.runs_on = False
        """The task stands no more: what was not asked before cannot be asked."""
        self._cookie: bytes | None = None

    def must_stand(self, subject: str) -> None:
        """Raise Bug when the task runs on."""
        if self.runs_on:
            raise Bug("was asked when its task ran on already", subject=subject)

    @property
    def netns_cookie(self) -> bytes | None:
        """What the kernel tells the task's network namespace by."""
        if self._cookie is None:
            ours = self.netlink_socket(netlink.NETLINK_SOCK_DIAG)
            self._cookie = fdcalls.netns_cookie(ours)
        return self._cookie

    @property
    def pidfd(self) -> int:
        """A pidfd of the task."""
        if "pidfd" not in self._opened:
            self._opened["pidfd"] = native.pidfd_open(self.pid)
        return self._opened["pidfd"]

    def directory(self, name: str) -> int:
        """O_PATH descriptor of /proc/PID/cwd, or of the root that its paths start from.

        That is the root of its mount namespace, for a chroot does not change what /proc tells.
        """
        if name not in self._opened:
            path = f"/proc/{self.pid}/{name}"
            with translated(f"task {self.ns_pid}", path):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
                if name == "root" and os.readlink(path) != "/":
                    fd = topmost(fd)
            self._opened[name] = fd
        return self._opened[name]

    def netlink_socket(self, protocol: int) -> int:
        """A netlink socket in the task's network namespace; kept until `close`."""
        if protocol not in self._netlink:
            subject = f"task {self.ns_pid}"
            self.must_stand(subject)
            if same_netns(self.pid):
                self._netlink[protocol] = netlink.open_socket(protocol)
            elif self.netns_socket is not None:
                self._netlink[protocol] = self.netns_socket(self.pid, protocol)
            else:
                raise Refused(
                    "the task is in another network namespace and no socket there is at hand",
                    subject=subject,
                    remedy="stop the task first, so that one can be made in it",
                )
        return self._netlink[protocol]

    def close(self) -> None:
        """Close what was opened."""
        self.closing.close()
        for fd in (*self._opened.values(), *self._netlink.values()):
            with suppress(OSError):
                os.close(fd)
        self._opened.clear()
        self._netlink.clear()

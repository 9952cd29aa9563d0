# SPDX-License-Identifier: Apache-2.0
"""The network lock: no packet of a connection that is read reaches anybody meanwhile.

Facts:
- While a connection is read its peer, and the kernel's own timers, would change it.
- Between the end of its tasks and their restore the kernel would answer its packets with RST.

While we look, the lock is a table that goes away with us (`kernel.nftables`); when the tasks have
been killed it is made again to stay, under the name that belongs to the dump, until the restore
deletes it. With one network namespace for each task there is one table in each.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from torpor.engine.errors import Denied, Error, KernelError
from torpor.engine.kernel import fdtexts, netlink, nftables
from torpor.engine.kernel.abi import AF, IPPROTO, SO, SOL_SOCKET, TCPState
from torpor.engine.kernel.fdview import Views
from torpor.engine.kernel.livefd import LiveFd
from torpor.engine.kernel.nftables import NETLINK_NETFILTER, Connection
from torpor.engine.options import NetworkLock, TcpPolicy
from torpor.engine.sockets.address import MAPPED

SOCKET_LINK = "socket:["
LOCKED = (
    TCPState.ESTABLISHED, TCPState.SYN_SENT, TCPState.FIN_WAIT1, TCPState.FIN_WAIT2,
    TCPState.CLOSE_WAIT, TCPState.LAST_ACK, TCPState.CLOSING,
)  # fmt: skip


@dataclass(slots=True)
class Lock:
    """What is locked: netlink socket of each network namespace → its connections."""

    table: str
    found: dict[int, list[Connection]] = field(default_factory=dict)
    stays: bool = False

    def hold(self, views: Views, policy: TcpPolicy, method: NetworkLock) -> bool:
        """Lock what is about to be read; False when that cannot be.

        Raises:
            Denied: connections to the outside are to be kept, and cannot be locked.
        """
        if policy is TcpPolicy.CLOSE_ALL:
            return False
        if method is NetworkLock.SKIP:
            return True
        for view, inodes in _by_namespace(views).items():
            connections = _connections(view, inodes, inside=policy is not TcpPolicy.KEEP)
            if not connections:
                continue
            try:
                fd = os.dup(view.task.netlink_socket(NETLINK_NETFILTER))
                self.found[fd] = connections
                nftables.lock(fd, self.table, connections, owned=True)
            except Error as error:
                if policy is not TcpPolicy.KEEP:
                    return False
                raise Denied(
                    "the network of the tree cannot be locked",
                    subject=f"{len(connections)} TCP connections",
                    cause=error.cause or error.what,
                    remedy="run with CAP_NET_ADMIN over its network namespace, on a kernel with "
                    "nf_tables; or lock it yourself and say --network-lock skip",
                ) from error
        return True

    def stay(self, going_on: Collection[Connection]) -> None:
        """Have the lock outlive us: the tasks are gone, these connections are not.

        The others are made anew by the restore, packet by packet.
        """
        for fd, connections in self.found.items():
            nftables.unlock(self.table, fd)
            nftables.lock(fd, self.table, [c for c in connections if c in going_on], owned=False)
            self.stays = True

    def __enter__(self) -> Self:
        return self

    def release(self) -> None:
        """Let packets pass again."""
        for fd in self.found:
            with suppress(OSError):
                os.close(fd)
        self.found.clear()

    def __exit__(self, *_: object) -> None:
        self.release()


def _by_namespace(views: Views) -> Mapping[LiveFd, set[int]]:
    """One socket of each network namespace, and the inodes of all that its tasks hold."""
    found: dict[str, tuple[LiveFd, set[int]]] = {}
    for pid, held in views.all().items():
        sockets = [v for v in held.values() if _is_of_ip(v)]
        if sockets:
            place = fdtexts.netns(pid)
            _, inodes = found.setdefault(place, (sockets[0], set()))
            inodes.update(view.st_ino for view in sockets)
    return dict(found.values())


def _is_of_ip(view: LiveFd) -> bool:
    if not view.link.startswith(SOCKET_LINK):
        return False
    raw = view.getsockopt(SOL_SOCKET, SO.DOMAIN, 4) or b""
    return int.from_bytes(raw, "little") in (AF.INET, AF.INET6)


def _connections(view: LiveFd, inodes: set[int], *, inside: bool) -> list[Connection]:
    """Of the sockets; ``inside``: only those with both ends among them."""
    found: set[Connection] = set()
    for family in (AF.INET, AF.INET6):
        request = netlink.inet_diag_request(family, IPPROTO.TCP)
        with suppress(KernelError):  # a kernel without IPv6
            answer = view.netlink(AF.NETLINK, netlink.NETLINK_SOCK_DIAG, request)
            found |= {
                (_plain(one.source), one.source_port, _plain(one.peer), one.peer_port)
                for one in netlink.inet_sockets(answer)
                if one.inode in inodes and one.state in LOCKED
            }
    if inside:
        found = {c for c in found if (c[2], c[3], c[0], c[1]) in found}
    return sorted(found)


def _plain(address: bytes) -> bytes:
    return address.removeprefix(MAPPED) if len(address) == 16 else address

# SPDX-License-Identifier: Apache-2.0
"""TCP sockets that nobody holds any more, at an address and port that comes back.

Facts (probed on v6.18):
- A task that was left stopped by its dump and killed later has closed its connections as usual:
  they wait in FIN_WAIT1 or TIME_WAIT, for minutes, and connect(2) gives EADDRNOTAVAIL meanwhile.
- What a program has closed without SO_REUSEADDR keeps its port for the minute of TIME_WAIT: its
  listener stays bound, but nobody could bind it anew (EADDRINUSE), with SO_REUSEADDR neither.
- inet_diag tells inode 0 of them. SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY, CAP_NET_ADMIN) ends them;
  it would end those of living tasks as well, so only what has no inode is named.

Source: net/ipv4/tcp_diag.c, tcp_diag_destroy; net/ipv4/tcp.c, tcp_abort (v6.18).
"""

import os
from collections.abc import Mapping, Set
from contextlib import suppress

from torpor.engine.errors import KernelError
from torpor.engine.kernel import netlink
from torpor.engine.kernel.abi import AF, IPPROTO, SO, SOL_SOCKET, TCPState
from torpor.engine.kind import FileId
from torpor.engine.sockets.address import MAPPED
from torpor.engine.sockets.inet_state import InetState


def clear(states: Mapping[FileId, InetState]) -> None:
    """End those of our network namespace; where that is not possible, connect(2) will tell."""
    wanted = {state.ends for state in states.values() if state.stream is not None}
    bound = {state.source.key for state in states.values() if _binds_alone(state)}
    if not wanted and not bound:
        return
    with suppress(KernelError):
        fd = netlink.open_socket(netlink.NETLINK_SOCK_DIAG)
        try:
            for family in (AF.INET, AF.INET6):
                request = netlink.inet_diag_request(family, IPPROTO.TCP)
                for one in netlink.inet_sockets(netlink.ask(fd, request)):
                    if not one.inode and (_ends(one) in wanted or _keeps_port(one, bound)):
                        netlink.ask(fd, netlink.inet_destroy_request(one, IPPROTO.TCP))
        finally:
            os.close(fd)


def _binds_alone(state: InetState) -> bool:
    return (
        state.tcp and bool(state.source.port) and not state.options.value(SOL_SOCKET, SO.REUSEADDR)
    )


def _keeps_port(one: netlink.InetSocket, bound: Set[tuple[bytes, int]]) -> bool:
    """Whether it has all behind it, at a place of these: what the other end waits for, it has."""
    if one.state not in (TCPState.TIME_WAIT, TCPState.FIN_WAIT2):
        return False
    here = _plain(one.source)
    return any(
        port == one.source_port and (ip == here or not any(ip) or not any(here))
        for ip, port in bound
    )


def _ends(one: netlink.InetSocket) -> tuple[bytes, int, bytes, int]:
    return _plain(one.source), one.source_port, _plain(one.peer), one.peer_port


def _plain(address: bytes) -> bytes:
    return address.removeprefix(MAPPED) if len(address) == len(MAPPED) + 4 else address

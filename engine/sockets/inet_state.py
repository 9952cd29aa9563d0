# SPDX-License-Identifier: Apache-2.0
"""The state of a TCP or UDP socket, and which sockets of a tree belong together."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torpor.engine.files.common import NOBODY, Owner
from torpor.engine.kernel.abi import IPPROTO, SOCK, TCP, TCPState
from torpor.engine.kind import End, FileId, Message
from torpor.engine.sockets.address import Address
from torpor.engine.sockets.multicast import Membership
from torpor.engine.sockets.options import SocketOptions
from torpor.engine.sockets.tcp_stream import Stream

CONNECTED = (
    TCPState.ESTABLISHED, TCPState.FIN_WAIT1, TCPState.FIN_WAIT2, TCPState.CLOSE_WAIT,
    TCPState.LAST_ACK, TCPState.CLOSING,
)  # fmt: skip

SHUT_BY_ITSELF = (TCPState.ESTABLISHED, TCPState.FIN_WAIT1, TCPState.FIN_WAIT2)
"""States in which no FIN of the peer ends receiving: what does is shutdown(2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InetState:
    """One socket.

    ``received`` is what waits to be read; ``sent`` what is not acknowledged, known only with
    ``stream``, which is what TCP_REPAIR told.
    """

    inode: int
    family: int
    kind: int
    protocol: int
    state: int
    flags: int
    source: Address
    peer: Address | None = None
    backlog: int = 0
    waiting: int = 0
    """Connections that wait to be accepted."""
    ended: bool = False
    """Was connected and is closed in both directions."""
    shutdown: int = 0
    """By itself: 1 receiving, 2 sending (not of TCP, where states tell)."""
    reset: bool = False
    closed: bool = False
    """Was connected, and is to come back as a closed socket."""
    lost: bool = False
    """Its connection to the outside is not to go on."""
    groups: tuple[Membership, ...] = ()
    """Multicast groups that it is a member of."""
    queue: tuple[Message, ...] = ()
    """Datagrams that wait to be read, with their senders."""
    received: bytes = b""
    sent: bytes = b""
    stream: Stream | None = None
    owner: Owner = NOBODY
    options: SocketOptions = field(default_factory=SocketOptions)
    congestion: str = ""

    @property
    def tcp(self) -> bool:
        """TCP, not UDP."""
        return self.kind == SOCK.STREAM

    @property
    def _word(self) -> str:
        if self.kind == SOCK.RAW:
            return f"raw({self.protocol})"
        return {IPPROTO.UDP: "udp", IPPROTO.UDPLITE: "udplite", IPPROTO.ICMP: "ping",
                IPPROTO.ICMPV6: "ping"}.get(IPPROTO(self.protocol), "tcp")  # fmt: skip

    @property
    def connected(self) -> bool:
        """A TCP connection in any state in which the kernel knows the peer."""
        return self.tcp and self.state in CONNECTED and self.peer is not None

    @property
    def calling(self) -> bool:
        """It has sent its SYN."""
        return self.tcp and self.state == TCPState.SYN_SENT

    @property
    def over(self) -> bool:
        """It was closed by both, and nothing waits to be read, not even an error."""
        return self.ended and not self.received and not self.reset

    def as_closed(self) -> "InetState":
        """The same without its connection."""
        return replace(self, closed=True, received=b"", sent=b"", stream=None)

    @property
    def ends(self) -> tuple[bytes, int, bytes, int]:
        """Address and port of both ends."""
        return (*self.source.key, *self.peer.key) if self.peer else (*self.source.key, b"", 0)

    @property
    def label(self) -> str:
        """`tcp 127.0.0.1:80 to 127.0.0.1:4711`."""
        text = f"{self._word} {self.source}"
        if self.state == TCPState.LISTEN:
            text += " listening"
        return f"{text} to {self.peer}" if self.peer else text


def mates(states: Mapping[FileId, InetState]) -> dict[FileId, FileId]:
    """The other end of each connection that has both ends in the tree; it may be the same one."""
    ends = {
        (s.source.key, s.peer.key): i
        for i, s in states.items()
        if s.connected and s.peer and not s.closed
    }
    found = {}
    for (source, peer), file_id in ends.items():
        other = ends.get((peer, source))
        if other is not None:
            found[file_id] = other
    return found


def waiting_clients(
    states: Mapping[FileId, InetState], pairs: Mapping[FileId, FileId]
) -> dict[FileId, FileId]:
    """Clients in the tree that wait to be accepted by a listener in the tree.

    With TCP_DEFER_ACCEPT they are not counted as waiting before they have sent something.
    """
    listeners = {i: s for i, s in states.items() if s.tcp and s.state == TCPState.LISTEN}
    found = {}
    for file_id, state in states.items():
        peer = state.peer
        if state.state != TCPState.ESTABLISHED or not state.connected or file_id in pairs:
            continue
        if peer is None or not (peer.loopback or peer.ip == state.source.ip):
            continue
        for server_id, server in listeners.items():
            deferred = server.options.value(IPPROTO.TCP, TCP.DEFER_ACCEPT)
            if (
                (server.waiting or deferred)
                and server.source.port == peer.port
                and (server.source.wildcard or server.source.ip == peer.ip)
            ):
                found[file_id] = server_id
                break
    return found


def before_kill(states: Mapping[FileId, InetState]) -> dict[FileId, End]:
    """Connections whose ports must be free when their tasks are dead, and how they end.

    Right before the tasks are killed (and only then) each is for `fdview.free_port`: what a
    killed task closes by a FIN is in TIME_WAIT for a minute, at the very address and port that
    a restore on this machine needs. Peers outside still get what was sent, and the FIN, unless
    their connection is to go on.
    """
    pairs = mates(states)
    clients = waiting_clients(states, pairs)
    inside = {*pairs, *clients}
    found = {}
    for file_id, state in states.items():
        if file_id not in clients and goes_on(file_id, state, pairs):
            found[file_id] = End.SILENT
        elif state.connected:
            found[file_id] = End.RESET if file_id in inside else End.FIN
    return found


def goes_on(file_id: FileId, state: InetState, pairs: Mapping[FileId, FileId]) -> bool:
    """Whether a connection is in the state whole, and wanted back alive."""
    if state.stream is None or state.closed or not (state.connected or state.calling):
        return False
    return file_id in pairs or not state.lost


def leads_outside(state: InetState) -> bool:
    """For a socket without mate: whether a peer outside still takes part."""
    if not state.tcp or state.reset or state.closed:
        return False
    return state.connected or state.state in (TCPState.SYN_SENT, TCPState.SYN_RECV)

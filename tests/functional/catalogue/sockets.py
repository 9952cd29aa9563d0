# SPDX-License-Identifier: Apache-2.0
"""Sockets of every family."""

from tests.functional.catalogue.case import Case

ESTABLISHED = ("--tcp-established",)
TCP_STATES = {
    "v4": "TCP to a peer outside, over IPv4",
    "v6": "TCP to a peer outside, over IPv6",
    "mapped": "TCP to a peer outside, IPv4 mapped into IPv6",
    "full": "TCP to a peer outside, both queues full, some bytes never sent",
    "fin_wait1": "TCP in FIN_WAIT1, its FIN not sent yet",
    "fin_wait2": "TCP in FIN_WAIT2",
    "close_wait": "TCP in CLOSE_WAIT",
    "last_ack": "TCP in LAST_ACK",
    "closing": "TCP in CLOSING",
    "syn_sent": "TCP in SYN_SENT",
    "settings": "TCP with all its options set",
    "inside_full": "TCP inside the tree, both queues full",
    "inside_half_shut": "TCP inside the tree, half shut",
    "self_connected": "TCP connected to itself",
}

IN_FLIGHT = {
    "stream": "a pipe in flight through a stream socket",
    "dgram": "a pipe in flight through a datagram socket",
    "seqpacket": "a pipe in flight through a seqpacket socket",
    "mixed": "bytes with and without descriptors in flight",
    "shared": "a file that is held and in flight",
    "many": "sockets, files and events in flight",
    "nested": "sockets in flight in whose queues others are in flight",
    "circle": "both ends of a pair in flight to each other",
}
OPTIONS = (
    "tcp4", "tcp6", "udp4", "udp6", "udplite4", "udplite6", "raw4", "raw6", "rawip4", "ping4",
    "ping6", "unix", "unixgram", "netlink",
)  # fmt: skip
DATAGRAM = {
    "udp4": "UDP connected to each other, IPv4",
    "udp6": "UDP connected to each other, IPv6",
    "udplite4": "UDP-Lite with coverage, IPv4",
    "udplite6": "UDP-Lite with coverage, IPv6",
    "shut_receiving": "UDP shut for receiving",
    "shut_sending": "UDP shut for sending",
    "shut_both": "UDP shut for both",
    "tcp_shut_receiving": "TCP shut for receiving",
    "raw": "raw sockets: bound, connected, headers included, filters",
}
AFTER_FIN = "cannot write again what was never sent before a FIN"
CHANGES = {" socket option 41, 26$": "IPV6_V6ONLY: bind(2) to an address that is none of IPv4"}

CASES: tuple[Case, ...] = (
    *(
        Case(
            state=text, program="sockets_tcp", arguments=(name,), options=ESTABLISHED,
            restore_options=ESTABLISHED, changes=CHANGES if name == "v6" else {},
            criu=AFTER_FIN if name == "inside_full" else "",
        )
        for name, text in TCP_STATES.items()
    ),
    Case(
        state="TCP that is to come back closed", program="sockets_tcp", arguments=("closed",),
        options=("--tcp-close",), restore_options=("--tcp-close",), changes={" socket ": "closed"},
    ),
    Case(
        state="TCP to the outside without leave", program="sockets_tcp", arguments=("refused",),
        refused="--tcp-established",
    ),
    Case(
        state="TCP with urgent data", program="sockets_tcp", arguments=("urgent",),
        options=ESTABLISHED, refused="urgent data",
    ),
    *(
        Case(
            state=text, program="sockets_scm", arguments=(name,),
            criu="loses a message without bytes" if name == "many" else "",
        )
        for name, text in IN_FLIGHT.items()
    ),
    Case(
        state="an epoll in flight", program="sockets_scm", arguments=("epoll",),
        refused="on its way through this unix socket",
    ),
    *(
        Case(
            state=f"every option of a socket: {name}", program="sockets_options",
            arguments=(name,), criu="keeps some options only",
        )
        for name in OPTIONS
    ),
    *(
        Case(
            state=text, program="sockets_datagram", arguments=(name,), options=ESTABLISHED,
            restore_options=ESTABLISHED,
            changes=CHANGES if name.endswith("6") else {},
            criu="loses the peer of a raw socket" if name == "raw" else "",
        )
        for name, text in DATAGRAM.items()
    ),
    Case(
        state="UDP with a datagram held back", program="sockets_datagram", arguments=("corked",),
        refused="UDP_CORK",
    ),
    Case(state="packet sockets with memberships", program="sockets_packet", arguments=("plain",)),
    Case(state="packet sockets with rings", program="sockets_packet", arguments=("rings",)),
)  # fmt: skip

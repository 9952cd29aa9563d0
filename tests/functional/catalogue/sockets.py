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
    "ping6", "unix", "unixgram", "netlink", "packet",
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
    "multicast": "members of multicast groups",
    "waiting4": "datagrams that wait, IPv4",
    "waiting6": "datagrams that wait, IPv6",
    "waiting_lite": "datagrams that wait, UDP-Lite",
    "raw": "raw sockets: bound, connected, headers included, filters",
}
DATAGRAM_CRIU = {
    "raw": "loses the peer of a raw socket",
    "multicast": "forgets memberships",
    **dict.fromkeys(("waiting4", "waiting6", "waiting_lite"), "loses them"),
}
AFTER_FIN = "cannot write again what was never sent before a FIN"
CHANGES = {" socket option 41, 26$": "IPV6_V6ONLY: bind(2) to an address that is none of IPv4"}

RENAMED = "gives the name as it was given, or as it is by now, but not the one for the other"
NAMES = {
    "relative": ("bound and called by a relative name", RENAMED),
    "relative_elsewhere": ("a relative name, and another working directory now", RENAMED),
    "relative_same": ("one relative name in two directories", ""),
    "relative_dots": ("relative names with dots", "refuses them"),
    "renamed": ("given another name after bind(2)", RENAMED),
    "renamed_directory": ("its directory was given another name", "cannot bind it"),
    "linked": ("two names by link(2)", "gives back one"),
    "linked_moved": ("a name by link(2), the first one gone", "gives back none"),
    "renamed_over": ("bound beside and renamed over another's name", "gives back none"),
    "rebound": ("a name that was removed and bound anew", ""),
    "deleted": ("a name that is gone, connections that live on", "forgets the name"),
    "deleted_directory": ("its directory is gone too", ""),
    "relative_deleted": ("a relative name that is gone", RENAMED),
    "relative_directory_gone": ("a relative name in a directory that is gone", ""),
    "other_file": ("a regular file has taken the name", ""),
    "other_directory": ("a directory has taken the name", ""),
    "longest": ("a name that fills sun_path to its last byte", "cuts it"),
    "abstract": ("abstract names with NULs and binary ones", ""),
    "autobound": ("names of the kernel's choice", "forgets some"),
    "by_symlink": ("bound by a path with a symlink in it", ""),
    "by_descriptor": ("bound by a path in /proc/self/fd", "cannot bind it"),
    "mode_and_owner": ("mode and owner of the file, a umask", ""),
    "descriptor_mode": ("fchmod(2) and fchown(2) of the socket itself", "forgets them"),
    "other_root": ("bound in another root directory", "binds it elsewhere"),
    "beside_name": ("clients with names of their own", "forgets one"),
    "pair_named": ("ends of socketpair(2) that were bound", "forgets the names"),
    "bound_only": ("bound and nothing else", ""),
    "opath_left": ("the file of a closed one, open with O_PATH", "refuses it"),
    "opath_living": ("the file of a living one, open with O_PATH", "refuses it"),
    "inherited": ("a listener shared by children that accept", ""),
}
UNACCEPTED = "data was sent on a unix connection that is not accepted yet"
BACKLOG = {
    "backlog": ("clients that wait to be accepted", ""),
    "backlog_full": ("a full backlog, a task waits in connect(2)", ""),
    "shut_listener": ("a listener that is shut", ""),
}
QUEUES = {
    "partial": ("a packet and a stream read in part", ""),
    "empty_messages": ("datagrams without bytes", "loses them"),
    "peek_offset": ("SO_PEEK_OFF that has moved on", "forgets it"),
    "full": ("queues without room, a task waits to write", ""),
    "roomy": ("buffers far above the limit, and full", ""),
    "in_itself": ("in flight in its own queue", ""),
    "many_senders": ("datagrams of several senders", "gives all to one"),
    "sender_gone": ("a datagram of a named sender that is closed", "forgets the sender"),
}
CREDENTIALS = {
    "peer_credentials": ("SO_PEERCRED of what other users have made", "gives root's"),
    "peer_pid": ("SO_PEERCRED of a child that has called", "gives the root's pid"),
    "peer_groups": ("SO_PEERGROUPS", "gives the restorer's"),
    "message_credentials": ("SCM_CREDENTIALS, of senders and as told", "refuses them"),
    "living_sender": ("SCM_CREDENTIALS of a living child", "refuses them"),
    "passing": ("SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD", "forgets some"),
}
ENDS = {
    "shut": ("shut in every way by either end", ""),
    "to_itself": ("connected to its own name", ""),
    "one_way": ("connected to a nameless receiver", "refuses it"),
    "pair_gone": ("ends whose other end is closed", ""),
    "datagram_gone": ("a datagram end whose other end is closed", "makes it unconnected"),
    "disconnected": ("a datagram socket that was connected before", ""),
    "waits": ("tasks that wait in recv and accept, timeouts", ""),
    "polled": ("an epoll over edges and one shots", ""),
    "owned": ("signal owners: process, thread, group", ""),
    "shared": ("an end held by three tasks", ""),
}
UNIX = {
    "sockets_backlog": BACKLOG, "sockets_queues": QUEUES, "sockets_credentials": CREDENTIALS,
    "sockets_states": ENDS,
}  # fmt: skip
REFUSED = {
    "backlog_data": (
        "sockets_backlog",
        "data of a unix client that waits to be accepted",
        UNACCEPTED,
    ),
    "backlog_packets": ("sockets_backlog", "packets of a unix client that waits", UNACCEPTED),
    "backlog_rights": (
        "sockets_backlog",
        "a descriptor sent by a unix client that waits",
        UNACCEPTED,
    ),
    "backlog_gone": (
        "sockets_backlog",
        "a unix client that is closed, not accepted yet",
        "waits to be accepted",
    ),
    "urgent": ("sockets_queues", "a byte out of band in a unix stream", "out of band"),
}

INTERNET = {
    "backlog": ("clients that wait to be accepted", "refuses them"),
    "deferred": ("a client that TCP_DEFER_ACCEPT holds back", "makes it anew without a server"),
    "dual": ("listeners of both families on one port", ""),
    "reuseport": ("a group of one port", ""),
    "unconnected": ("fresh, bound, failed to connect", ""),
    "settings": ("options of each end of a connection", "forgets some"),
    "corked": ("bytes that TCP_CORK holds back", "fails when the kernel has sent them meanwhile"),
    "locked_filter": ("SO_LOCK_FILTER", "forgets it"),
    "closes": ("TIME_WAIT behind a listener", ""),
    "closes_plainly": ("TIME_WAIT behind a listener without SO_REUSEADDR", "cannot bind it"),
    "lingering": ("a peer that has closed and is gone", ""),
    "reset": ("a peer that has reset, bytes before that", "cannot tell"),
    "datagram_named": ("UDP bound, disconnected, shared ports", "forgets a disconnected one"),
    "freebind": ("addresses that nobody has", "cannot bind them"),
    "ping": ("echo sockets", "does not take them"),
    "waits": ("tasks that wait in accept and recv", ""),
    "polled": ("an epoll over edges and one shots", ""),
    "owned": ("a signal owner", ""),
    "of_user": ("sockets that another user has made", "makes them root's"),
    "written": ("a writer in the midst of eight megabytes", "cannot write what was not sent"),
}
CHANGING = {
    "dual": CHANGES,
    "unconnected": {" socket name$": "of a connect(2) that failed, which has no port any more"},
    "reset": {" socket name$": "of a connection that is over: made again by another"},
}
INTERNET_REFUSED = {
    "backlog_data": ("data of a TCP client that waits to be accepted", "wait to be accepted"),
    "backlog_gone": ("a TCP client that is closed, not accepted yet", "wait to be accepted"),
    "urgent": ("a byte out of band in a TCP connection of the tree", "urgent data"),
}

BY_NAME = {
    "part_of_rings": ("a part of the mapped rings of a packet socket", "a part of the rings"),
    "closed_ring": ("mapped rings of a closed packet socket", "no packet socket of the tree"),
    "netlink_queued": ("a netlink message between tasks", "waits in this netlink socket"),
    "vsock": ("AF_VSOCK", "virtual machine's host"),
    "alg": ("AF_ALG", "crypto socket"),
    "can": ("AF_CAN", "CAN bus"),
    "bluetooth": ("AF_BLUETOOTH", "Bluetooth"),
    "xdp": ("AF_XDP", "XDP socket"),
    "kcm": ("AF_KCM", "multiplexor"),
    "smc": ("AF_SMC", "TIPC, RDS or SMC"),
    "tipc": ("AF_TIPC", "TIPC, RDS or SMC"),
    "sctp": ("SCTP", "SCTP or DCCP"),
    "mptcp": ("an MPTCP connection", "is MPTCP"),
    "tls": ("TCP with TLS in the kernel", "handled by a protocol in the kernel"),
    "md5": ("TCP with signatures", "signs its segments"),
    "other_namespace": ("a socket of another network namespace", "another network namespace"),
}

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
            criu=DATAGRAM_CRIU.get(name, ""),
        )
        for name, text in DATAGRAM.items()
    ),
    Case(
        state="UDP with a datagram held back", program="sockets_datagram", arguments=("corked",),
        refused="UDP_CORK",
    ),
    *(
        Case(state=f"unix: {text}", program="sockets_names", arguments=(name,), criu=why)
        for name, (text, why) in NAMES.items()
    ),
    *(
        Case(
            state=f"unix: {text}", program=program, arguments=(name,), criu=why,
            busy=name == "full",
        )
        for program, states in UNIX.items()
        for name, (text, why) in states.items()
    ),
    *(
        Case(state=text, program=program, arguments=(name,), refused=why)
        for name, (program, text, why) in REFUSED.items()
    ),
    *(
        Case(
            state=f"TCP and UDP: {text}", program="sockets_internet", arguments=(name,), criu=why,
            options=ESTABLISHED, restore_options=ESTABLISHED,
            changes=CHANGING.get(name, {}),
            busy=name in ("written", "corked"),
        )
        for name, (text, why) in INTERNET.items()
    ),
    *(
        Case(
            state=text, program="sockets_internet", arguments=(name,), options=ESTABLISHED,
            refused=why,
        )
        for name, (text, why) in INTERNET_REFUSED.items()
    ),
    Case(state="SOCK_PACKET", program="sockets_more", arguments=("old_packet",)),
    Case(
        state="netlink of many protocols", program="sockets_more", arguments=("netlink",),
        criu="refuses groups above 32",
    ),
    Case(
        state="a listener of MPTCP", program="sockets_more", arguments=("mptcp_listening",),
        criu="refuses it",
    ),
    *(
        Case(
            state=f"refused: {text}", program="sockets_more", arguments=(name,), refused=why,
            options=ESTABLISHED, busy=name == "xdp",
        )
        for name, (text, why) in BY_NAME.items()
    ),
    Case(state="packet sockets with memberships", program="sockets_packet", arguments=("plain",)),
    Case(state="packet sockets with rings", program="sockets_packet", arguments=("rings",)),
    Case(state="packet sockets whose rings are mapped", program="sockets_packet",
         arguments=("mapped",)),
    Case(state="packet sockets whose rings are read", program="sockets_packet",
         arguments=("reading",), criu="has them begin anew at another block",
         changes={" area [0-9a-f-]+$": "the mapping is turned"}),
)  # fmt: skip

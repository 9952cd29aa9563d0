# SPDX-License-Identifier: Apache-2.0
"""Netlink sockets: protocol, port id, groups, options.

Facts:
- getsockname gives the port id and the first 32 groups; NETLINK_LIST_MEMBERSHIPS gives all.
  A port id can be chosen freely by bind(2) as long as it is free in the network namespace.
- SO_MEMINFO tells whether something is queued, without a read: a read would also go on with a
  dump that the kernel has begun.
- An answer that waits for a task without groups is one that it is about to read, and would
  wait for for ever: refused, try again. Queued notices for groups are dropped with a warning,
  as the kernel itself may do (ENOBUFS).
- The audit daemon is known to the kernel by task and port: AUDIT_GET names its pid, with
  CAP_AUDIT_CONTROL only, and nobody outside of the first pid namespace can become it
  (kernel/audit.c, audit_netlink_ok). Everyone else's audit socket only writes records.
- Connecting to a peer (nl_pid of another task) is kept; the kernel is peer 0.

Source: netlink(7); net/netlink/af_netlink.c (v6.8). CRIU: netlink_sk_entry.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torpor.engine.errors import KernelError, Refused
from torpor.engine.files.common import (
    NOBODY,
    Owner,
    created,
    decode_owner,
    encode_owner,
    late_owners,
    read_owner,
    status_flags,
    subject,
)
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import netlink
from torpor.engine.kernel.abi import AF, NETLINK, S_IFSOCK, SO, SOCK, SOL_NETLINK, SOL_SOCKET
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Data, Expect, Op, place
from torpor.engine.sockets import option_plan
from torpor.engine.sockets import options as sockopts
from torpor.engine.sockets.options import SocketOptions

GROUP_WORDS = 32
CLOSE, CONNECTED = 7, 1
SECTION = "netlink"
PROTOCOL_NAMES = {
    0: "NETLINK_ROUTE", 2: "NETLINK_USERSOCK", 4: "NETLINK_SOCK_DIAG", 5: "NETLINK_NFLOG",
    6: "NETLINK_XFRM", 9: "NETLINK_AUDIT", 11: "NETLINK_CONNECTOR", 12: "NETLINK_NETFILTER",
    15: "NETLINK_KOBJECT_UEVENT", 16: "NETLINK_GENERIC", 21: "NETLINK_CRYPTO",
}  # fmt: skip

ANSWER_WAITS = Limit(
    case="netlink-answer",
    what="an answer of the kernel waits in this netlink socket",
    remedy="take the checkpoint again, when the task has read it",
    is_passing=True,
)
AUDIT = Limit(
    case="netlink-audit",
    what="the audit daemon's socket is known to the kernel by task, and cannot be moved",
    remedy="stop the audit daemon before the checkpoint",
)
LIMITS = (ANSWER_WAITS, AUDIT, *sockopts.LIMITS)
NETLINK_AUDIT, AUDIT_GET = 9, 1000
ASK = netlink.NLM_F_REQUEST
AUDIT_STATUS = struct.Struct("=4I")
"""mask, enabled, failure, pid: the beginning of struct audit_status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetlinkState:
    """One socket. ``groups`` are words of 32 groups each, the lowest first."""

    inode: int
    kind: int
    protocol: int
    flags: int
    port: int = 0
    groups: tuple[int, ...] = ()
    peer_port: int = 0
    peer_groups: int = 0
    owner: Owner = NOBODY
    options: SocketOptions = field(default_factory=SocketOptions)

    @property
    def label(self) -> str:
        """`netlink NETLINK_ROUTE, port 4711`."""
        return f"netlink {PROTOCOL_NAMES.get(self.protocol, self.protocol)}, port {self.port}"


class Netlink:
    """The kind."""

    name = "netlink socket"
    types = ("NETLINKSK",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By family."""
        return (
            view.st_mode & 0o170000 == S_IFSOCK
            and view.link.startswith("socket:[")
            and sockopts.number(view, SOL_SOCKET, SO.DOMAIN) == AF.NETLINK
        )

    def questions(self, view: FdView) -> None:
        """None."""
        del view

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Nothing was asked."""
        del view, context
        return False

    def collect(self, view: FdView, context: DumpContext) -> NetlinkState:
        """Read the state."""
        protocol = sockopts.number(view, SOL_SOCKET, SO.PROTOCOL) or 0
        if protocol == NETLINK_AUDIT and _may_be_audit_daemon(view, context):
            raise refuse(AUDIT, view.subject)
        port, low = struct.unpack("<4xII", view.sockname()[:12].ljust(12, b"\0"))
        members = view.getsockopt(SOL_NETLINK, NETLINK.LIST_MEMBERSHIPS, 4 * GROUP_WORDS) or b""
        words = list(struct.unpack(f"<{len(members) // 4}I", members[: len(members) // 4 * 4]))
        groups = words or [low]
        while groups and not groups[-1]:
            groups.pop()
        peer = (view.peername() or b"").ljust(12, b"\0")
        peer_port, peer_groups = struct.unpack("<4xII", peer[:12])
        memory = view.getsockopt(SOL_SOCKET, SO.MEMINFO, 36) or b""
        if int.from_bytes(memory[:4], "little"):
            if not groups:
                raise refuse(ANSWER_WAITS, view.subject)
            context.warn(f"{view.subject}: queued netlink notices are dropped")
        return NetlinkState(
            inode=view.st_ino,
            kind=sockopts.number(view, SOL_SOCKET, SO.TYPE) or SOCK.RAW,
            protocol=protocol,
            flags=view.flags & ~0o2000000,
            port=port,
            groups=tuple(groups),
            peer_port=peer_port,
            peer_groups=peer_groups,
            owner=read_owner(view, context),
            options=sockopts.read(view, AF.NETLINK, 0),
        )

    def check(
        self, states: Mapping[FileId, NetlinkState], context: DumpContext
    ) -> Iterable[Refused]:
        """Nothing more."""
        del states, context
        return ()

    def encode(self, states: Mapping[FileId, NetlinkState], images: ImageSink) -> None:
        """netlink_sk_entry each."""
        for file_id, state in states.items():
            connected = bool(state.peer_port or state.peer_groups)
            message = pb.netlink_sk_entry(
                id=file_id,
                ino=state.inode,
                protocol=state.protocol,
                state=CONNECTED if connected else CLOSE,
                flags=state.flags,
                portid=state.port,
                groups=state.groups,
                dst_portid=state.peer_port,
                dst_group=state.peer_groups,
                fown=encode_owner(state.owner),
                opts=sockopts.encode(state.options),
                ns_id=sockopts.NET_NS_ID,
            )
            images.add("files", pb.file_entry(type=pb.NETLINKSK, id=file_id, nlsk=message))
            sockopts.keep(images, file_id, state.options)
            if state.kind != SOCK.RAW:
                images.extra(SECTION, str(file_id), {"type": state.kind})

    def decode(self, images: ImageSource) -> Mapping[FileId, NetlinkState]:
        """Read back."""
        found = {}
        for file_id, message in images.files("NETLINKSK"):
            unsaid = images.extra(SECTION, str(file_id)) or {}
            found[file_id] = NetlinkState(
                inode=message.ino,
                kind=int(unsaid.get("type", SOCK.RAW)),
                protocol=message.protocol,
                flags=message.flags,
                port=message.portid,
                groups=tuple(message.groups),
                peer_port=message.dst_portid,
                peer_groups=message.dst_group,
                owner=decode_owner(message.fown),
                options=sockopts.decode(message.opts, images, file_id),
            )
        return found

    def plan(self, states: Mapping[FileId, NetlinkState], context: PlanContext) -> Sequence[Op]:
        """Make, bind to the port id and groups, join the groups beyond the first 32."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, where = context.fd(file_id), subject(context, file_id, state.label)
            make = Op(call="socket", args=(AF.NETLINK, state.kind, state.protocol), subject=where)
            ops += place(make, fd)
            ops += option_plan.early_ops(state.options, fd, where)
            ops += option_plan.late_ops(state.options, fd, where)
            low = state.groups[0] if state.groups else 0
            if state.port or low:
                at = _address(state.port, low)
                remedy = "the port id may be in use: join another network namespace"
                ops.append(
                    Op(call="bind", args=(fd, at, 12), subject=where, remedy=remedy,
                       note=f"groups {low:#x}")
                )  # fmt: skip
            for group in _beyond_first_word(state.groups):
                number = Data(struct.pack("<I", group), 4, (), str(group))
                ops.append(
                    Op(call="setsockopt",
                       args=(fd, SOL_NETLINK, NETLINK.ADD_MEMBERSHIP, number, 4),
                       subject=where, note="NETLINK_ADD_MEMBERSHIP")
                )  # fmt: skip
            if state.peer_port or state.peer_groups:
                at = _address(state.peer_port, state.peer_groups)
                ops.append(Op(call="connect", args=(fd, at, 12), subject=where, expect=Expect.ANY))
            ops += option_plan.buffer_ops(state.options, fd, where)
            ops += status_flags(fd, state.flags, 0, where)
        return ops

    def late(self, states: Mapping[FileId, NetlinkState], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in states.items()}, context)


def _may_be_audit_daemon(view: FdView, context: DumpContext) -> bool:
    """Whether the task is the audit daemon, or nobody will say that it is not."""
    if view.pid != view.ns_pid:
        return False
    try:
        answer = view.netlink(AF.NETLINK, NETLINK_AUDIT, netlink.request(AUDIT_GET, b"", ASK))
        told = [body for kind, body in netlink.messages(answer) if kind == AUDIT_GET]
    except KernelError:
        return True
    return any(AUDIT_STATUS.unpack_from(body)[3] in context.tasks for body in told)


def _address(port: int, groups: int) -> Data:
    """Struct sockaddr_nl."""
    raw = struct.pack("<HHII", AF.NETLINK, 0, port, groups)
    return Data(raw, 4, (), f"netlink port {port}")


def _beyond_first_word(groups: Sequence[int]) -> list[int]:
    """Numbers of groups above 32; a group's number is its bit plus one."""
    return [
        32 * word + bit + 1
        for word, value in enumerate(groups)
        for bit in range(32)
        if word and value >> bit & 1
    ]


KIND = Netlink()

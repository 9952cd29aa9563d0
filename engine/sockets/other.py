# SPDX-License-Identifier: Apache-2.0
"""Sockets that are refused by name: every family and type that no other module takes.

Facts: a socket's family, type and protocol are SO_DOMAIN, SO_TYPE, SO_PROTOCOL. What these
hold is in the kernel only (rings, keys, hardware queues, radio links) or outside of the
machine, and cannot be read back or set.
"""

from collections.abc import Iterable, Mapping, Sequence

from torpor.engine.errors import Refused
from torpor.engine.kernel.abi import AF, IPPROTO, S_IFSOCK, SO, SOL_SOCKET
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
from torpor.engine.program.ops import Op
from torpor.engine.sockets import inet, netlink, packet, unix
from torpor.engine.sockets import options as sockopts

CLOSE_IT = "close it before the checkpoint and open it again after the restore"

SCTP = Limit(case="sctp-socket", what="an SCTP or DCCP socket", remedy=CLOSE_IT)
VSOCK = Limit(
    case="vsock", what="a socket to the virtual machine's host (AF_VSOCK)", remedy=CLOSE_IT
)
XDP = Limit(
    case="xdp-socket", what="an XDP socket shares rings with a network device", remedy=CLOSE_IT
)
ALG = Limit(
    case="alg-socket", what="a crypto socket (AF_ALG) whose key cannot be read back",
    remedy="use a crypto library in the program instead",
)  # fmt: skip
BLUETOOTH = Limit(
    case="bluetooth-socket", what="a Bluetooth socket is a link to a device", remedy=CLOSE_IT
)
CAN = Limit(case="can-socket", what="a CAN bus socket", remedy=CLOSE_IT)
TIPC = Limit(case="tipc-socket", what="a TIPC, RDS or SMC socket", remedy=CLOSE_IT)
KCM = Limit(case="kcm-socket", what="a kernel multiplexor socket (AF_KCM)", remedy=CLOSE_IT)
UNKNOWN = Limit(
    case="unknown-socket", what="a socket of a family that torpor does not know", remedy=CLOSE_IT
)
LIMITS = (SCTP, VSOCK, XDP, ALG, BLUETOOTH, CAN, TIPC, KCM, UNKNOWN)

BY_FAMILY: Mapping[int, Limit] = {
    AF.VSOCK: VSOCK, AF.XDP: XDP, AF.ALG: ALG, AF.BLUETOOTH: BLUETOOTH,
    AF.CAN: CAN, AF.TIPC: TIPC, AF.RDS: TIPC, AF.SMC: TIPC, AF.KCM: KCM,
}  # fmt: skip
BY_PROTOCOL: Mapping[int, Limit] = {
    IPPROTO.SCTP: SCTP, 33: SCTP,
}  # fmt: skip


class Other:
    """The kind of sockets that are not taken. It has no states."""

    name = "other sockets"
    types: Sequence[str] = ()
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """A socket that is none of the others."""
        return (
            view.st_mode & 0o170000 == S_IFSOCK
            and view.link.startswith("socket:[")
            and not any(k.matches(view) for k in (unix.KIND, inet.KIND, netlink.KIND, packet.KIND))
        )

    def questions(self, view: FdView) -> None:
        """None."""
        del view

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Nothing was asked."""
        del view, context
        return False

    def collect(self, view: FdView, context: DumpContext) -> None:
        """Refuse."""
        del context
        family = sockopts.number(view, SOL_SOCKET, SO.DOMAIN) or 0
        kind = sockopts.number(view, SOL_SOCKET, SO.TYPE) or 0
        protocol = sockopts.number(view, SOL_SOCKET, SO.PROTOCOL) or 0
        raise refuse(
            limit_for(family, protocol),
            view.subject,
            f"family {family}, type {kind}, protocol {protocol}",
        )

    def check(self, states: Mapping[FileId, None], context: DumpContext) -> Iterable[Refused]:
        """There are none."""
        del states, context
        return ()

    def encode(self, states: Mapping[FileId, None], images: ImageSink) -> None:
        """There are none."""
        del states, images

    def decode(self, images: ImageSource) -> Mapping[FileId, None]:
        """There are none."""
        del images
        return {}

    def plan(self, states: Mapping[FileId, None], context: PlanContext) -> Sequence[Op]:
        """There are none."""
        del states, context
        return ()

    def late(self, states: Mapping[FileId, None], context: PlanContext) -> Sequence[LateOp]:
        """There are none."""
        del states, context
        return ()


def limit_for(family: int, protocol: int) -> Limit:
    """The refusal that names it."""
    if family in (AF.INET, AF.INET6):
        return BY_PROTOCOL.get(protocol, UNKNOWN)
    return BY_FAMILY.get(family, UNKNOWN)


KIND = Other()

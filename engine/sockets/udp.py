# SPDX-License-Identifier: Apache-2.0
"""How UDP, raw and ping sockets come back: made, bound, connected; what was queued is lost."""

from collections.abc import Mapping, Sequence

from torpor.engine.files.common import created, status_flags, subject
from torpor.engine.kernel.abi import IPPROTO, SO, SOCK, SOL_SOCKET
from torpor.engine.kind import FileId, PlanContext
from torpor.engine.program.ops import Op, place
from torpor.engine.sockets import address as addresses
from torpor.engine.sockets import option_plan, option_tables
from torpor.engine.sockets.inet_state import InetState
from torpor.engine.sockets.tcp import ADDRESS_REMEDY, moved

REUSEADDR = option_tables.ALL[SOL_SOCKET, SO.REUSEADDR]


def plan(states: Mapping[FileId, InetState], context: PlanContext) -> Sequence[Op]:
    """Operations for all UDP sockets: all are bound before one is connected."""
    ops: list[Op] = []
    mine = created(states, context)
    for file_id, state in mine.items():
        fd, where = context.fd(file_id), subject(context, file_id, state.label)
        make = Op(call="socket", args=(state.family, state.kind, state.protocol), subject=where)
        ops += place(make, fd)
        ops += option_plan.early_ops(state.options, fd, where)
        if state.protocol not in (IPPROTO.UDP, IPPROTO.UDPLITE):  # others are made with it
            reuse = state.options.value(SOL_SOCKET, SO.REUSEADDR)
            ops.append(option_plan.set_value(fd, REUSEADDR, reuse, where))
        raw = state.kind == SOCK.RAW  # its port is the protocol
        if not state.source.wildcard if raw else state.source.port:
            at = _local(state, context).data()
            ops.append(
                Op(call="bind", args=(fd, at, len(at.content)), subject=where, note=at.text,
                   remedy=ADDRESS_REMEDY)
            )  # fmt: skip
    for file_id, state in mine.items():
        fd, where = context.fd(file_id), subject(context, file_id, state.label)
        if state.peer is not None:
            at = moved(state.peer, context).data()
            ops.append(
                Op(call="connect", args=(fd, at, len(at.content)), subject=where,
                   note=f"to {at.text}", remedy="make a route to that address")
            )  # fmt: skip
        if state.shutdown:
            how = state.shutdown - 1
            ops.append(Op(call="shutdown", args=(fd, how), subject=where))
        ops += option_plan.late_ops(state.options, fd, where)
        ops += option_plan.buffer_ops(state.options, fd, where)
        ops += status_flags(fd, state.flags, 0, where)
    return ops


def _local(state: InetState, context: PlanContext) -> addresses.Address:
    """The address to bind to. One that connect(2) chose is chosen anew in a new place."""
    new = moved(state.source, context)
    if new == state.source and state.peer and context.new_container and not new.loopback:
        return addresses.any_address(state.family, state.source.port)
    return new

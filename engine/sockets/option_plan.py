# SPDX-License-Identifier: Apache-2.0
"""Setting socket options: before bind(2), after it, and the buffers at last."""

import struct

from torpor.engine.kernel.abi import SO, SOL_SOCKET
from torpor.engine.program.ops import Arg, Data, Expect, Op
from torpor.engine.sockets.option_tables import ALL, ALL_RAW, Option
from torpor.engine.sockets.options import FRESH_MODE, RCVBUF_LOCK, SNDBUF_LOCK, SocketOptions

LOCK = (SOL_SOCKET, SO.LOCK_FILTER)


def set_value(fd: Arg, option: Option, value: int, subject: str) -> Op:
    """One setsockopt(2)."""
    return Op(
        call="setsockopt",
        args=(
            fd,
            option.level,
            option.number,
            Data(struct.pack("<i", value), 4, (), str(value)),
            4,
        ),
        subject=subject,
        note=f"{option.name} = {value}",
        expect=Expect.ANY if option.lenient else Expect.OK,
    )


def early_ops(options: SocketOptions, fd: Arg, subject: str) -> list[Op]:
    """What must be set before bind(2), with owner and mode of the socket."""
    ops = _node_ops(options, fd, subject)
    ops += [
        set_value(fd, ALL[level, n], value, subject)
        for level, n, value in options.values
        if ALL[level, n].early
    ]
    if options.device:
        note = f"SO_BINDTODEVICE = {options.device}"
        ops.append(_set(fd, SO.BINDTODEVICE, options.device.encode(), subject, note))
    return ops


def _node_ops(options: SocketOptions, fd: Arg, subject: str) -> list[Op]:
    ops = []
    if options.mode != FRESH_MODE:
        ops.append(Op(call="fchmod", args=(fd, options.mode), subject=subject))
    if options.uid or options.gid:
        ops.append(
            Op(call="fchown", args=(fd, options.uid, options.gid), subject=subject,
               note="whose socket it is", expect=Expect.ANY)
        )  # fmt: skip
    return ops


def late_ops(options: SocketOptions, fd: Arg, subject: str) -> list[Op]:
    """The other options; `buffer_ops` come when nothing is left to be queued."""
    late = [one for one in options.values if not ALL[one[:2]].early and one[:2] != LOCK]
    late.sort(key=lambda one: one[:2] == (SOL_SOCKET, SO.PRIORITY))  # IP_TOS sets that as well
    ops = [set_value(fd, ALL[level, n], value, subject) for level, n, value in late]
    for level, n, value in options.raws:
        one, data = ALL_RAW[level, n], Data(value, 4, (), value.hex())
        ops.append(
            Op(
                call="setsockopt",
                args=(fd, level, n, data, len(value)),
                subject=subject,
                note=one.name,
                remedy=one.remedy,
                expect=Expect.ANY if one.lenient else Expect.OK,
            )
        )
    if options.linger_s is not None:
        raw = struct.pack("<ii", 1, options.linger_s)
        ops.append(_set(fd, SO.LINGER, raw, subject, f"SO_LINGER = {options.linger_s} s"))
    for option, time_us, name in (
        (SO.SNDTIMEO, options.send_timeout_us, "SO_SNDTIMEO"),
        (SO.RCVTIMEO, options.receive_timeout_us, "SO_RCVTIMEO"),
    ):
        if time_us:
            raw = struct.pack("<qq", time_us // 1_000_000, time_us % 1_000_000)
            ops.append(_set(fd, option, raw, subject, f"{name} = {time_us} µs"))
    if options.filter:
        code = Data(options.filter, 8, (), f"filter of {len(options.filter) // 8} instructions")
        head = struct.pack("<HxxxxxxQ", len(options.filter) // 8, 0)
        program = Data(head, 8, ((8, code),), "struct sock_fprog")
        args = (fd, SOL_SOCKET, SO.ATTACH_FILTER, program, len(head))
        ops.append(
            Op(
                call="setsockopt",
                args=args,
                subject=subject,
                note="SO_ATTACH_FILTER",
                remedy="this kernel may want CAP_NET_ADMIN for socket filters",
            )
        )
    locked = options.value(*LOCK)
    if locked:
        ops.append(set_value(fd, ALL[LOCK], locked, subject))
    return ops


def buffer_ops(options: SocketOptions, fd: Arg, subject: str, *, raised: bool = False) -> list[Op]:
    """Sizes of the buffers that the program had set; all of them if we ``raised`` them."""
    ops: list[Op] = []
    unlocked = options.buf_lock is not None and not raised
    for bit, size, option, force, name in (
        (SNDBUF_LOCK, options.sndbuf_bytes, SO.SNDBUF, SO.SNDBUFFORCE, "SO_SNDBUF"),
        (RCVBUF_LOCK, options.rcvbuf_bytes, SO.RCVBUF, SO.RCVBUFFORCE, "SO_RCVBUF"),
    ):
        if not size or (unlocked and not (options.buf_lock or 0) & bit):
            continue
        raw = struct.pack("<i", size // 2)
        note = f"{name} = {size // 2}"
        ops.append(_set(fd, option, raw, subject, note))
        ops.append(_set(fd, force, raw, subject, f"{note}, beyond the limit", expect=Expect.ANY))
    if ops and options.buf_lock is not None:
        raw = struct.pack("<i", options.buf_lock)
        note = f"SO_BUF_LOCK = {options.buf_lock}"
        ops.append(_set(fd, SO.BUF_LOCK, raw, subject, note, expect=Expect.ANY))
    return ops


def raise_send_buffer(fd: Arg, size_bytes: int, subject: str) -> list[Op]:
    """Room for what is queued again, as far as the kernel allows it."""
    raw = struct.pack("<i", min(4 * size_bytes + 65536, 1 << 30))
    note = "room to queue again"
    return [
        _set(fd, SO.SNDBUF, raw, subject, note),
        _set(fd, SO.SNDBUFFORCE, raw, subject, note, expect=Expect.ANY),
    ]


def raise_receive_buffer(fd: Arg, size_bytes: int, subject: str) -> list[Op]:
    """As `raise_send_buffer`, before connect(2)."""
    raw = struct.pack("<i", min(4 * size_bytes + 65536, 1 << 30))
    note = "room to receive again"
    return [
        _set(fd, SO.RCVBUF, raw, subject, note),
        _set(fd, SO.RCVBUFFORCE, raw, subject, note, expect=Expect.ANY),
    ]


def _set(
    fd: Arg, option: int, raw: bytes, subject: str, note: str, *, expect: Expect = Expect.OK
) -> Op:
    data = Data(raw, 8, (), f"<{len(raw)} bytes>")
    return Op(
        call="setsockopt", args=(fd, SOL_SOCKET, option, data, len(raw)), subject=subject,
        note=note, expect=expect,
    )  # fmt: skip

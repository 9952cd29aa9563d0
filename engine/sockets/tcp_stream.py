# SPDX-License-Identifier: Apache-2.0
"""What a TCP connection is besides its addresses and bytes: sequence numbers, options, window.

Facts:
- The sequence numbers of TCP_QUEUE_SEQ are those after the last byte of the queue; a FIN that
  was sent or received counts as a byte.
- TCP_INFO has the options that both ends agreed on (byte 5) and the window scales (byte 6).

CRIU: tcp_stream_entry of tcp-stream-N.img; the bytes of the receive queue and of the send queue
follow. A connection that was read without TCP_REPAIR gets numbers of our invention.
"""

from dataclasses import dataclass
from typing import Any

from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import TCPState
from torpor.engine.kind import TcpRepair

OPT_TIMESTAMPS, OPT_SACK, OPT_WSCALE = 1, 2, 4
INFO_OPTIONS, INFO_SCALES = 5, 6
LOOPBACK_MSS = 65495
FIRST_SEQUENCE = 1 << 20
MASK = 0xFFFFFFFF

FIN_SENT = (TCPState.FIN_WAIT1, TCPState.FIN_WAIT2, TCPState.LAST_ACK, TCPState.CLOSING)
FIN_RECEIVED = (TCPState.CLOSE_WAIT, TCPState.LAST_ACK, TCPState.CLOSING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """``unsent`` counts bytes at the end of the send queue (with a FIN) that were never sent."""

    in_sequence: int
    out_sequence: int
    unsent: int = 0
    options: int = 0
    send_scale: int = 0
    receive_scale: int = 0
    mss: int = LOOPBACK_MSS
    timestamp: int = 0
    window: tuple[int, ...] = ()
    """snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup."""


def of(repair: TcpRepair, info: bytes) -> Stream:
    """From what TCP_REPAIR and TCP_INFO told."""
    options = info[INFO_OPTIONS] & (OPT_TIMESTAMPS | OPT_SACK | OPT_WSCALE)
    scales = info[INFO_SCALES] if options & OPT_WSCALE else 0
    return Stream(
        in_sequence=repair.in_sequence,
        out_sequence=repair.out_sequence,
        unsent=repair.unsent,
        options=options,
        send_scale=scales & 15,
        receive_scale=scales >> 4,
        mss=repair.mss,
        timestamp=repair.timestamp,
        window=repair.window,
    )


def invented(*, first: bool) -> Stream:
    """Numbers for a connection inside the tree; both ends agree on them."""
    mine, theirs = FIRST_SEQUENCE, 2 * FIRST_SEQUENCE
    if not first:
        mine, theirs = theirs, mine
    return Stream(in_sequence=theirs, out_sequence=mine)


def encode(stream: Stream, received: bytes, sent: bytes) -> Any:  # noqa: ANN401
    """CRIU's tcp_stream_entry."""
    message = pb.tcp_stream_entry(
        inq_len=len(received),
        inq_seq=stream.in_sequence,
        outq_len=len(sent),
        outq_seq=stream.out_sequence,
        opt_mask=stream.options,
        snd_wscale=stream.send_scale,
        mss_clamp=stream.mss,
        unsq_len=min(stream.unsent, len(sent)),
    )
    if stream.options & OPT_WSCALE:
        message.rcv_wscale = stream.receive_scale
    if stream.options & OPT_TIMESTAMPS:
        message.timestamp = stream.timestamp
    if stream.window:
        names = ("snd_wl1", "snd_wnd", "max_window", "rcv_wnd", "rcv_wup")
        for name, value in zip(names, stream.window, strict=True):
            setattr(message, name, value)
    return message


def decode(message: Any) -> Stream:  # noqa: ANN401
    """Back."""
    window: tuple[int, ...] = ()
    if message.HasField("rcv_wup"):
        window = (
            message.snd_wl1, message.snd_wnd, message.max_window, message.rcv_wnd, message.rcv_wup
        )  # fmt: skip
    return Stream(
        in_sequence=message.inq_seq,
        out_sequence=message.outq_seq,
        unsent=message.unsq_len,
        options=message.opt_mask,
        send_scale=message.snd_wscale,
        receive_scale=message.rcv_wscale,
        mss=message.mss_clamp,
        timestamp=message.timestamp,
        window=window,
    )

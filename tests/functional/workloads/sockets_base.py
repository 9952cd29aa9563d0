# SPDX-License-Identifier: Apache-2.0
"""What the workloads of unix sockets share."""

import socket

UNIX, STREAM, DGRAM, SEQPACKET = (
    socket.AF_UNIX, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET,
)  # fmt: skip
SOL = socket.SOL_SOCKET


def pair(kind=STREAM):
    return socket.socketpair(UNIX, kind)


def listener(place, kind=STREAM, backlog=5):
    one = socket.socket(UNIX, kind)
    one.bind(str(place / "server"))
    one.listen(backlog)
    return one


def call(place, kind=STREAM):
    client = socket.socket(UNIX, kind)
    client.connect(str(place / "server"))
    return client

# SPDX-License-Identifier: Apache-2.0
"""Run as a script: takes TCP sockets out of repair mode when the engine has died.

Its argument is a socket that brings descriptors, each with the SO_REUSEADDR that it had. After
`done` nothing is touched; at the end of the stream without it, every socket that is still in
repair mode is set back. It imports next to nothing, because the engine waits for its end.
"""

import resource
import socket
import struct
import sys

TCP_REPAIR, OFF_WITHOUT_PROBE = 19, -1


def main(channel: int) -> None:
    """Watch until told otherwise."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    watched: dict[int, int] = {}
    with socket.socket(fileno=channel) as pipe:
        while True:
            word, fds, _, _ = socket.recv_fds(pipe, 16, 4)
            if word == b"done":
                return
            if not word:
                break
            for fd in fds:
                watched[fd] = struct.unpack("<i", word)[0]
    for fd, reuse in watched.items():
        with socket.socket(fileno=fd) as one:
            _set_back(one, reuse)


def _set_back(one: socket.socket, reuse: int) -> None:
    try:
        if one.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
            one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, OFF_WITHOUT_PROBE)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    except OSError:  # the others still have to be seen to
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))

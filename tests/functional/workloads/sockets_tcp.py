# SPDX-License-Identifier: Apache-2.0
"""TCP connections to a peer that is not of the tree, in every state, and inside the tree.

The second argument names the state. The peer is a daemon; it does its part when `go` is there.
"""

import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from files_base import workload

FOLDER = Path(sys.argv[1])
STATES = {"established": 1, "syn_sent": 2, "fin_wait1": 4, "fin_wait2": 5, "close_wait": 8,
          "last_ack": 9, "closing": 11}  # fmt: skip
TCP = socket.IPPROTO_TCP
HOSTS = {"v4": ("127.0.0.1", socket.AF_INET), "v6": ("::1", socket.AF_INET6),
         "mapped": ("::ffff:127.0.0.1", socket.AF_INET6)}  # fmt: skip


def state(one):
    return one.getsockopt(TCP, socket.TCP_INFO, 8)[0]


def expect_state(one, name):
    deadline = time.monotonic() + 5
    while state(one) != STATES[name]:
        assert time.monotonic() < deadline, (state(one), name)
        time.sleep(0.01)


def pattern(size, seed):
    word = b"".join(struct.pack(">I", i * seed & 0xFFFFFFFF) for i in range(4096))
    return (word * (size // len(word) + 1))[:size]


def read(one, size):
    data = bytearray()
    while len(data) < size:
        part = one.recv(size - len(data))
        assert part, f"end after {len(data)} of {size} bytes"
        data += part
    return bytes(data)


def fill(one):
    """Write until there is no room any more; how much it was."""
    one.setblocking(False)
    whole, sent = pattern(64 << 20, 7), 0
    quiet = time.monotonic() + 0.3
    while time.monotonic() < quiet:
        try:
            sent += one.send(whole[sent : sent + 65536])
            quiet = time.monotonic() + 0.3
        except BlockingIOError:
            time.sleep(0.01)
    one.setblocking(True)
    return sent


def await_go():
    while not (FOLDER / "go").exists():
        time.sleep(0.01)


def outside(body, *arguments):
    """Run ``body`` in a process that is no descendant; what it tells is its result."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.alarm(150)
            os.close(reading)
            for fd in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            try:
                body(writing, *arguments)
                (FOLDER / "peer").write_text("ok")
            except BaseException as error:  # noqa: BLE001 (it is the result)
                (FOLDER / "peer.part").write_text(repr(error))
                (FOLDER / "peer.part").rename(FOLDER / "peer")
        os._exit(0)
    os.wait()
    os.close(writing)
    told = os.read(reading, 100)
    os.close(reading)
    return told


def peer_is_content():
    deadline = time.monotonic() + 20
    while not (FOLDER / "peer").exists() or not (FOLDER / "peer").read_text():
        assert time.monotonic() < deadline, "the peer does not end"
        time.sleep(0.01)
    assert (FOLDER / "peer").read_text() == "ok", (FOLDER / "peer").read_text()


def connect(serve, version="v4", **options):
    """A connection to a peer that runs ``serve(socket)`` for it."""
    host, family = HOSTS[version]

    def peer(tell):
        with socket.socket(family) as server:
            server.bind((host, 0))
            server.listen(1)
            os.write(tell, str(server.getsockname()[1]).encode())
            os.close(tell)
            accepted, _ = server.accept()
        accepted.settimeout(60)
        serve(accepted)

    port = int(outside(peer))
    one = socket.socket(family)
    if options.get("reuse"):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.connect((host, port))
    one.settimeout(30)
    return one


def talk(version):
    def serve(peer):
        peer.send(b"before")
        assert read(peer, 5) == b"hello"
        peer.send(b"world")
        assert peer.recv(1) == b""

    def body(_):
        one = connect(serve, version, reuse=version == "v4")
        assert one.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL) == b"before"
        names = one.getsockname(), one.getpeername()
        yield
        assert (one.getsockname(), one.getpeername()) == names
        assert state(one) == STATES["established"]
        assert read(one, 6) == b"before"
        one.send(b"hello")
        assert read(one, 5) == b"world"
        one.close()
        peer_is_content()

    return body


def full(_):
    """Both directions are full: received, sent, and never sent."""
    sizes = FOLDER / "sizes"

    def serve(peer):
        sent = fill(peer)
        sizes.write_text(str(sent))
        await_go()
        got = read(peer, int((FOLDER / "mine").read_text()))
        assert got == pattern(len(got), 7)
        peer.sendall(b"!")
        assert peer.recv(1) == b""

    one = connect(serve)
    (FOLDER / "mine").write_text(str(fill(one)))
    while not sizes.exists():
        time.sleep(0.01)
    yield
    theirs = read(one, int(sizes.read_text()))
    assert theirs == pattern(len(theirs), 7)
    assert read(one, 1) == b"!"
    one.close()
    peer_is_content()


def fin_wait2(_):
    def serve(peer):
        assert read(peer, 3) == b"bye"
        assert peer.recv(1) == b""
        peer.send(b"some")
        await_go()
        peer.send(b"more")

    one = connect(serve)
    one.send(b"bye")
    one.shutdown(socket.SHUT_WR)
    assert one.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"some"
    expect_state(one, "fin_wait2")
    yield
    assert read(one, 8) == b"somemore"
    assert one.recv(1) == b""
    peer_is_content()


def fin_wait1(_):
    """The FIN waits behind what the peer has no room for."""

    def serve(peer):
        await_go()
        got = read(peer, int((FOLDER / "mine").read_text()))
        assert got == pattern(len(got), 7)
        assert peer.recv(1) == b""
        peer.send(b"seen")

    one = connect(serve)
    (FOLDER / "mine").write_text(str(fill(one)))
    one.shutdown(socket.SHUT_WR)
    expect_state(one, "fin_wait1")
    yield
    assert read(one, 4) == b"seen"
    assert one.recv(1) == b""
    peer_is_content()


def close_wait(_):
    def serve(peer):
        peer.send(b"last words")
        peer.shutdown(socket.SHUT_WR)
        await_go()
        assert read(peer, 6) == b"answer"
        assert peer.recv(1) == b""

    one = connect(serve)
    expect_state(one, "close_wait")
    yield
    assert read(one, 10) == b"last words"
    assert one.recv(1) == b""
    one.send(b"answer")
    one.close()
    peer_is_content()


def last_ack(_):
    def serve(peer):
        peer.shutdown(socket.SHUT_WR)
        await_go()
        got = read(peer, int((FOLDER / "mine").read_text()))
        assert got == pattern(len(got), 7)
        assert peer.recv(1) == b""

    one = connect(serve)
    expect_state(one, "close_wait")
    (FOLDER / "mine").write_text(str(fill(one)))
    one.shutdown(socket.SHUT_WR)
    expect_state(one, "last_ack")
    yield
    peer_is_content()
    assert one.recv(1) == b""


def closing(_):
    """Both have sent their FIN, and none has room for the other's data before it."""

    def serve(peer):
        while not (FOLDER / "mine").exists():
            time.sleep(0.01)
        peer.shutdown(socket.SHUT_WR)
        await_go()
        got = read(peer, int((FOLDER / "mine").read_text()))
        assert got == pattern(len(got), 7)
        assert peer.recv(1) == b""

    one = connect(serve)
    size = fill(one)
    one.shutdown(socket.SHUT_WR)
    (FOLDER / "mine").write_text(str(size))
    expect_state(one, "closing")
    yield
    peer_is_content()
    assert one.recv(1) == b""


def syn_sent(_):
    """The peer's backlog is full, so the SYN is not answered."""

    def peer(tell):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            other = socket.create_connection(server.getsockname())
            os.write(tell, str(server.getsockname()[1]).encode())
            await_go()
            server.accept()[0].close()
            other.close()
            server.settimeout(60)
            accepted, _ = server.accept()
            assert read(accepted, 5) == b"hello"

    port = int(outside(peer))
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", port))
    expect_state(one, "syn_sent")
    yield
    select.select([], [one], [], 60)
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert state(one) == STATES["established"]
    one.send(b"hello")
    peer_is_content()


def settings(_):
    def serve(peer):
        assert read(peer, 2) == b"ok"

    one = connect(serve)
    for option, value in (
        (socket.TCP_NODELAY, 1), (socket.TCP_KEEPIDLE, 33), (socket.TCP_KEEPINTVL, 7),
        (socket.TCP_KEEPCNT, 4), (socket.TCP_SYNCNT, 3), (socket.TCP_LINGER2, 17),
        (socket.TCP_USER_TIMEOUT, 30000), (socket.TCP_NOTSENT_LOWAT, 5000),
        (socket.TCP_WINDOW_CLAMP, 40000), (socket.TCP_QUICKACK, 0),
    ):  # fmt: skip
        one.setsockopt(TCP, option, value)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30000)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3))
    one.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
    yield
    one.send(b"ok")
    one.close()
    peer_is_content()


def inside_full(_):
    """Both ends in the tree, and more on its way than the other end has room for."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    size, back = fill(one), fill(two)
    one.shutdown(socket.SHUT_WR)
    yield
    assert read(two, size) == pattern(size, 7)
    assert two.recv(1) == b""
    assert read(one, back) == pattern(back, 7)
    two.send(b"x")
    assert one.recv(1) == b"x"


def inside_half_shut(_):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    one.send(b"bye")
    one.shutdown(socket.SHUT_WR)
    expect_state(one, "fin_wait2")
    expect_state(two, "close_wait")
    yield
    assert read(two, 3) == b"bye"
    assert two.recv(1) == b""
    two.send(b"answer")
    assert read(one, 6) == b"answer"


def self_connected(_):
    one = socket.socket()
    one.bind(("127.0.0.1", 0))
    one.connect(one.getsockname())
    one.send(b"echo")
    yield
    assert one.recv(4) == b"echo"
    one.send(b"again")
    assert one.recv(5) == b"again"


def urgent(_):
    def serve(peer):
        peer.send(b"!", socket.MSG_OOB)
        assert read(peer, 4) == b"seen"

    one = connect(serve)
    poller = select.poll()
    poller.register(one, select.POLLPRI)
    assert poller.poll(5000)
    one.setblocking(True)
    yield
    assert one.recv(1, socket.MSG_OOB) == b"!"
    one.send(b"seen")
    peer_is_content()


def closed(_):
    """--tcp-close: whatever was connected is a closed socket."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    one = socket.create_connection(server.getsockname())
    two, _ = server.accept()
    one.send(b"lost")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    yield
    if one.getsockopt(TCP, socket.TCP_INFO, 8)[0] == 1:  # left alone
        return
    for end in (one, two):
        assert end.getsockopt(TCP, socket.TCP_INFO, 8)[0] == 7
        assert end.recv(1) == b""
        try:
            end.send(b"x")
            raise AssertionError
        except BrokenPipeError:
            pass
    again = socket.create_connection(server.getsockname())
    assert server.accept()
    again.close()


BODIES = {
    "v4": talk("v4"), "v6": talk("v6"), "mapped": talk("mapped"), "full": full,
    "fin_wait1": fin_wait1, "fin_wait2": fin_wait2, "close_wait": close_wait,
    "last_ack": last_ack, "closing": closing, "syn_sent": syn_sent, "settings": settings,
    "inside_full": inside_full, "inside_half_shut": inside_half_shut,
    "self_connected": self_connected, "refused": talk("v4"), "urgent": urgent, "closed": closed,
}  # fmt: skip

if __name__ == "__main__":
    workload(BODIES[sys.argv[2]])

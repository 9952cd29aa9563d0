# SPDX-License-Identifier: Apache-2.0
"""TCP, UDP and netlink: a server with a client in a child, epoll over it, connections that end."""

import os
import select
import signal
import socket
import time

from files_base import workload


def child_of(place, client):
    """Hold the client's end; answer when the workload is told to go on."""
    while not (place / "go").exists():
        time.sleep(0.02)
    client.sendall(b" and more")
    assert client.recv(100) == b"greeting"
    client.close()
    signal.pause()


def body(place):
    server = socket.create_server(("127.0.0.1", 0), backlog=33)
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.sendall(b"queued")
    accepted.sendall(b"greeting")
    idle = socket.create_connection(server.getsockname())
    idle_accepted, _ = server.accept()
    six = socket.create_server(("::1", 0), family=socket.AF_INET6)
    waiting = socket.create_connection(server.getsockname())
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.connect(udp.getsockname())
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    route.bind((0, 1))
    port, names = route.getsockname()[0], [server.getsockname(), client.getsockname()]
    watch = select.epoll()
    watch.register(accepted, select.EPOLLIN)
    watch.register(server, select.EPOLLIN | select.EPOLLET)
    child = os.fork()
    if child == 0:
        child_of(place, client)
        os._exit(0)
    client.close()
    yield
    assert [server.getsockname(), accepted.getpeername()] == names
    text = b""
    while len(text) < 15:
        assert accepted.fileno() in dict(watch.poll(10))
        text += accepted.recv(100)
    assert text == b"queued and more"
    assert accepted.recv(10) == b""
    idle.send(b"still there")
    assert idle_accepted.recv(100) == b"still there"
    waiting.send(b"patient")
    assert server.accept()[0].recv(100) == b"patient"
    fresh = socket.create_connection(six.getsockname()[:2])
    assert six.accept()
    peer.send(b"datagram")
    assert udp.recv(100) == b"datagram"
    assert route.getsockname() == (port, 1)
    fresh.close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


workload(body)

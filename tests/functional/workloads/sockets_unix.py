# SPDX-License-Identifier: Apache-2.0
"""Unix sockets between parent and child: a server with a client, pairs, datagrams, closed ends."""

import os
import signal
import socket
import time

from files_base import workload


def child_of(place, pair, client, datagram):
    """Hold one end each; answer when the workload is told to go on."""
    while not (place / "go").exists():
        time.sleep(0.02)
    pair.send(b"echo " + pair.recv(100))
    client.send(b"from the client")
    datagram.send(b"another")
    signal.pause()


def body(place):
    path = str(place / "server")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    os.chmod(path, 0o660)
    server.listen(9)
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    accepted, _ = server.accept()
    client.send(b"queued")
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.send(b"one")
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(place / "log"))
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(str(place / "log"))
    sender.send(b"first line")
    hidden = socket.socket(socket.AF_UNIX)
    hidden.bind(b"\0torpor-test-" + str(os.getpid()).encode())
    hidden.listen(1)
    left, gone = socket.socketpair()
    gone.send(b"last words")
    gone.close()
    passed = socket.socketpair()[0].dup()
    child = os.fork()
    if child == 0:
        child_of(place, theirs, client, sender)
        os._exit(0)
    for each in (theirs, client, sender, passed):
        each.close()
    inode = os.fstat(server.fileno()).st_ino
    yield
    assert os.stat(path).st_mode & 0o777 == 0o660
    assert inode
    assert mine.recv(100) == b"echo one"
    assert accepted.getsockname() == server.getsockname() == path
    text = b""
    while len(text) < 21:
        text += accepted.recv(100)
    assert text == b"queuedfrom the client"
    assert receiver.recv(100) == b"first line"
    assert receiver.recv(100) == b"another"
    assert left.recv(100) == b"last words"
    assert left.recv(100) == b""
    again = socket.socket(socket.AF_UNIX)
    again.connect(hidden.getsockname())
    hidden.accept()[0].send(b"x")
    assert again.recv(1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


workload(body)

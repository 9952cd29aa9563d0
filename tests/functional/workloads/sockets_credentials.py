# SPDX-License-Identifier: Apache-2.0
"""Who has made unix sockets and who has sent what waits in them; the second argument says which."""

import array
import os
import signal
import socket
import struct
import time

from files_base import child, chosen, ended, state
from sockets_base import DGRAM, SOL, UNIX, call, listener, pair

PEERCRED = 17
SO_PEERGROUPS = 59


def credentials(one):
    return struct.unpack("iII", one.getsockopt(SOL, PEERCRED, 12))


def as_user(uid, body):
    """Run with other ids for the moment."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        return body()
    finally:
        os.seteuid(0)
        os.setegid(0)


@state
def peer_credentials(place):
    """SO_PEERCRED of connections and pairs that other users have made."""
    made = as_user(1234, pair)
    server = as_user(1111, lambda: listener_in(place))
    client = as_user(2222, lambda: call_in(place))
    accepted, _ = server.accept()
    waiting = as_user(3333, lambda: call_in(place))
    whole = [credentials(each)[1:] for each in (*made, client, accepted, waiting)]
    assert whole == [(1234, 1234)] * 2 + [(1111, 1111), (2222, 2222), (1111, 1111)], whole
    yield
    accepted2, _ = server.accept()
    ends = (*made, client, accepted, waiting)
    assert [credentials(each)[1:] for each in ends] == whole
    assert credentials(accepted2)[1:] == (3333, 3333)


def listener_in(place):
    one = socket.socket(UNIX)
    one.bind(b"\0peer" + os.fsencode(place))
    one.listen(5)
    return one


def call_in(place):
    one = socket.socket(UNIX)
    one.connect(b"\0peer" + os.fsencode(place))
    return one


@state
def peer_pid(place):
    """SO_PEERCRED names the tasks that called, listened, made the pair."""
    server = listener(place)
    reader, writer = os.pipe()

    def body():
        client = call(place)
        os.write(writer, b"x")
        client.recv(10)

    pid = child(body)
    os.read(reader, 1)
    accepted, _ = server.accept()
    mine = pair()
    assert credentials(accepted)[0] == pid
    yield
    assert credentials(accepted) == (pid, 0, 0)
    assert credentials(mine[0]) == credentials(mine[1]) == (os.getpid(), 0, 0)
    accepted.send(b"end")
    assert ended(pid) == 0


@state
def peer_groups(place):
    os.setgroups([10, 20, 30])
    one, two = pair()
    wanted = one.getsockopt(SOL, SO_PEERGROUPS, 100)
    assert array.array("I", wanted).tolist() == [10, 20, 30]
    os.setgroups([])
    yield
    assert one.getsockopt(SOL, SO_PEERGROUPS, 100) == wanted
    assert two.getsockopt(SOL, SO_PEERGROUPS, 100) == wanted


@state
def message_credentials(place):
    """SCM_CREDENTIALS of queued messages: of their senders, and as they were told."""
    one, two = pair(DGRAM)
    two.setsockopt(SOL, socket.SO_PASSCRED, 1)
    told = struct.pack("iII", os.getpid(), 77, 88)
    one.sendmsg([b"told"], [(SOL, socket.SCM_CREDENTIALS, told)])
    one.send(b"plain")
    pid = child(lambda: one.send(b"child") - 5)
    assert ended(pid) == 0
    stream = pair()
    stream[1].setsockopt(SOL, socket.SO_PASSCRED, 1)
    stream[0].send(b"mine")
    stream[0].sendmsg([b"told"], [(SOL, socket.SCM_CREDENTIALS, told)])
    yield

    def received(which):
        data, control, _, _ = which.recvmsg(100, 100)
        return data, struct.unpack("iII", control[0][2])

    assert received(two) == (b"told", (os.getpid(), 77, 88))
    assert received(two) == (b"plain", (os.getpid(), 0, 0))
    assert received(two)[0] == b"child"
    assert received(stream[1]) == (b"mine", (os.getpid(), 0, 0))
    assert received(stream[1]) == (b"told", (os.getpid(), 77, 88))


@state
def living_sender(place):
    """Credentials of a message that a living child has sent."""
    one, two = pair(DGRAM)
    two.setsockopt(SOL, socket.SO_PASSCRED, 1)

    def body():
        one.send(b"child")
        signal.pause()

    pid = child(body)
    time.sleep(0.1)
    yield
    data, control, _, _ = two.recvmsg(100, 100)
    assert (data, struct.unpack("iII", control[0][2])) == (b"child", (pid, 0, 0))
    os.kill(pid, 9)
    ended(pid)


@state
def passing(place):
    """SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD, SO_PASSRIGHTS, and what they do."""
    one, two = pair()
    for option in (16, 34, 76):
        two.setsockopt(SOL, option, 1)
    server = listener(place)
    server.setsockopt(SOL, 16, 1)
    yield
    assert [two.getsockopt(SOL, option) for option in (16, 34, 76)] == [1, 1, 1]
    one.send(b"x")
    _, control, _, _ = two.recvmsg(10, 200)
    kinds = {kind for _, kind, _ in control}
    assert {2, 4} <= kinds, control
    with call(place):
        assert server.accept()[0].getsockopt(SOL, 16) == 1


if __name__ == "__main__":
    chosen()

# SPDX-License-Identifier: Apache-2.0
"""epoll in all its nestings and flags."""

import itertools
import os
import select
import socket
import time

from files_base import await_file, child, chosen, ended, state

IN, OUT, ET, ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET, select.EPOLLONESHOT
EXCLUSIVE, WAKEUP, HUP = 1 << 28, 1 << 29, select.EPOLLHUP


def told(poll, patience=0.05):
    return dict(poll.poll(patience))


@state
def nested(place):
    """Five deep, the innermost over an eventfd."""
    event = os.eventfd(0, os.EFD_NONBLOCK)
    polls = [select.epoll() for _ in range(5)]
    polls[0].register(event, IN)
    for inner, outer in itertools.pairwise(polls):
        outer.register(inner.fileno(), IN)
    yield
    assert told(polls[4]) == {}
    os.eventfd_write(event, 1)
    assert told(polls[4]) == {polls[3].fileno(): IN}
    assert told(polls[0]) == {event: IN}
    os.eventfd_read(event)
    assert told(polls[4]) == {}


@state
def flags(place):
    """One file under two numbers; edge, one-shot spent and not, exclusive, wakeup, no events."""
    one, two = socket.socketpair()
    dup = os.dup(one.fileno())
    poll = select.epoll()
    poll.register(one.fileno(), IN)
    poll.register(dup, OUT | ET)
    spent, fresh, quiet, sole = (os.eventfd(1, os.EFD_NONBLOCK) for _ in range(4))
    poll.register(spent, IN | ONESHOT)
    assert spent in told(poll)
    poll.register(fresh, IN | ONESHOT | WAKEUP)
    poll.register(quiet, 0)
    poll.register(sole, IN | EXCLUSIVE)
    yield
    two.send(b"x")
    found = told(poll)
    assert found.get(one.fileno()) == IN, found
    assert found.get(fresh) == IN
    assert found.get(sole) == IN
    assert spent not in found
    assert quiet not in found
    assert fresh not in told(poll)
    poll.modify(spent, IN)
    assert spent in told(poll)
    poll.unregister(dup)
    poll.unregister(one.fileno())
    poll.unregister(sole)


@state
def spent(place):
    """One shots that have fired, over what hangs up later; one is armed again."""
    poll = select.epoll()
    stream, packets = socket.socketpair(), socket.socketpair(type=socket.SOCK_DGRAM)
    listener = socket.create_server(("127.0.0.1", 0))
    calls = socket.create_connection(listener.getsockname())
    taken, _ = listener.accept()
    read, write = os.pipe()
    behind, full = os.pipe()
    os.write(full, b"x")
    again = os.eventfd(1)
    fired = [stream[0].fileno(), packets[0].fileno(), taken.fileno(), behind, write]
    for fd in (*fired, again):
        poll.register(fd, IN | OUT | ONESHOT | (ET if fd == behind else 0))
    found = set()
    while len(found) < len(fired) + 1:
        found |= set(told(poll, 1))
    poll.modify(again, IN | ONESHOT)
    yield
    assert told(poll) == {again: IN}
    calls.close()
    stream[1].close()
    os.close(full)
    os.close(read)
    assert told(poll) == {}
    poll.modify(write, IN | ONESHOT)
    assert set(told(poll)) == {write}


@state
def closed_number(place):
    """The number was closed and is used again, while a dup keeps the file."""
    event = os.eventfd(0, os.EFD_NONBLOCK)
    number = os.dup(event)
    poll = select.epoll()
    poll.register(number, IN)
    os.dup2(os.open("/dev/null", os.O_RDONLY), number)
    high = os.dup2(event, 900)
    poll.register(high, IN)
    os.close(high)
    yield
    os.eventfd_write(event, 1)
    assert told(poll) == {number: IN, 900: IN}
    assert os.readlink(f"/proc/self/fd/{number}") == "/dev/null"


@state
def shared(place):
    """Of parent and child, whose targets only one of them still has."""
    event, other = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    poll = select.epoll()
    poll.register(event, IN)
    poll.register(other, IN)

    def body():
        await_file(place / "child")
        os.eventfd_write(event, 1)

    pid = child(body)
    os.close(event)  # only the child has it now
    yield
    (place / "child").touch()
    assert ended(pid) == 0
    os.eventfd_write(other, 1)
    assert other in told(poll)


@state
def every_kind(place):
    """Over all that can be watched."""
    read, write = os.pipe()
    os.mkfifo(place / "fifo")
    fifo = os.open(place / "fifo", os.O_RDWR | os.O_NONBLOCK)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    event, task = os.eventfd(0), os.pidfd_open(os.getpid())
    mounts = os.open("/proc/self/mounts", os.O_RDONLY)
    poll = select.epoll()
    watched = [read, write, fifo, listener.fileno(), datagram.fileno(), event, task, mounts]
    for fd in watched:
        poll.register(fd, IN)
    yield
    os.write(write, b"x")
    os.write(fifo, b"x")
    os.eventfd_write(event, 1)
    found = told(poll)
    assert {read, fifo, event} <= set(found), found
    assert not {write, listener.fileno(), datagram.fileno(), task} & set(found), found


@state
def many(place):
    """Five hundred targets in one, and a hundred epolls over one."""
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(500)]
    poll = select.epoll()
    for fd in events:
        poll.register(fd, IN)
    polls = [select.epoll() for _ in range(100)]
    for one in polls:
        one.register(events[0], IN)
    yield
    os.eventfd_write(events[0], 1)
    os.eventfd_write(events[499], 1)
    assert set(dict(poll.poll(0.05))) == {events[0], events[499]}
    assert all(told(one, 0) for one in polls)
    time.sleep(0)


@state
def waiting(place):
    """A child waits in epoll_wait of a nested one."""
    event = os.eventfd(0, os.EFD_NONBLOCK)
    inner, outer = select.epoll(), select.epoll()
    inner.register(event, IN)
    outer.register(inner.fileno(), IN)
    pid = child(lambda: 0 if dict(outer.poll()) == {inner.fileno(): IN} else 1)
    time.sleep(0.1)
    yield
    os.eventfd_write(event, 1)
    assert ended(pid) == 0


@state
def gone(place):
    """The target is open nowhere but in another task's table that has been closed: it is none."""
    event = os.eventfd(0, os.EFD_NONBLOCK)
    poll = select.epoll()
    poll.register(event, IN)
    os.close(event)
    yield
    assert told(poll) == {}


if __name__ == "__main__":
    chosen()

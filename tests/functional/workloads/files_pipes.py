# SPDX-License-Identifier: Apache-2.0
"""Pipes and fifos with content between parent and child; epoll over them; a pidfd of the child."""

import fcntl
import os
import select
import signal
import time

from files_base import workload


def child_of(place, read, back):
    """Echo what comes, when the workload is told to go on."""
    while not (place / "go").exists():
        time.sleep(0.02)
    os.write(back, os.read(read, 4096))
    signal.pause()


def body(place):
    read, write = os.pipe()
    os.write(write, b"queued")
    back_read, back_write = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(back_write, fcntl.F_SETPIPE_SZ, 1 << 19)
    os.mkfifo(place / "fifo")
    fifo = os.open(place / "fifo", os.O_RDWR)
    os.write(fifo, b"in the fifo")
    child = os.fork()
    if child == 0:
        child_of(place, read, back_write)
        os._exit(0)
    os.close(read)
    os.close(back_write)
    task = os.pidfd_open(child)
    poll = select.epoll()
    poll.register(back_read, select.EPOLLIN)
    poll.register(task, select.EPOLLIN)
    counter = os.eventfd(0, os.EFD_NONBLOCK)
    moved = os.dup(counter)
    poll.register(moved, select.EPOLLIN)
    os.close(moved)
    yield
    assert dict(poll.poll(5)) == {back_read: select.EPOLLIN}
    assert os.read(back_read, 99) == b"queued"
    assert fcntl.fcntl(back_read, fcntl.F_GETPIPE_SZ) == 1 << 19
    assert os.read(fifo, 99) == b"in the fifo"
    os.eventfd_write(counter, 3)
    assert dict(poll.poll(5)) == {moved: select.EPOLLIN}
    assert os.eventfd_read(counter) == 3
    signal.pidfd_send_signal(task, signal.SIGTERM)
    while task not in dict(poll.poll(5)):  # its end of the pipe goes before it
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    os.close(write)


if __name__ == "__main__":
    workload(body)

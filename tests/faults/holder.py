# SPDX-License-Identifier: Apache-2.0
"""A tree that has something of every reference that images hold: who points to whom."""

import mmap
import os
import pathlib
import select
import signal
import socket
import sys
import tempfile
import threading
import time

folder = pathlib.Path(sys.argv[1])
reader, writer = os.pipe()
os.write(writer, b"in a pipe")
one, other = socket.socketpair()
one.send(b"queued")
watcher, nested = select.epoll(), select.epoll()
watcher.register(reader, select.EPOLLIN)
watcher.register(nested.fileno(), select.EPOLLIN)
memory = os.memfd_create("a")
os.write(memory, b"x" * 5000)
ghost = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open while it lives
ghost.write(b"unlinked" * 100)
ghost.flush()
os.mkfifo(folder / "fifo")
fifo = os.open(folder / "fifo", os.O_RDWR)
os.write(fifo, b"in a fifo")
shared = mmap.mmap(-1, 8192)
shared[:4] = b"both"
threading.Thread(target=signal.pause, daemon=True).start()
children = [0, 0]
for number in range(2):
    children[number] = os.fork()
    if children[number] == 0:
        signal.pause()
time.sleep(0.05)
(folder / "ready").write_text("set up")
signal.pause()

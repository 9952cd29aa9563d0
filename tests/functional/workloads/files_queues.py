# SPDX-License-Identifier: Apache-2.0
"""Pipes and fifos: sizes, packets, ends, many of them, tasks that wait in them."""

import fcntl
import os
import signal
import time

from files_base import await_file, child, chosen, ended, state

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
PAGE = 4096


@state
def sizes(place):
    """Every size that may be set, with content: none, a little, full."""
    pipes = []
    for size in (PAGE, 2 * PAGE, 1 << 16, 1 << 18, 1 << 20):
        for filled in (0, 1, 5000, size):
            read, write = os.pipe()
            assert fcntl.fcntl(write, F_SETPIPE_SZ, size) == size
            count = min(filled, size)
            os.write(write, bytes(i & 0xFF for i in range(count)))
            pipes.append((read, write, size, count))
    yield
    for read, write, size, count in pipes:
        assert fcntl.fcntl(read, F_GETPIPE_SZ) == size
        os.set_blocking(write, False)
        if count == size:
            try:
                os.write(write, b"x")
                raise AssertionError("there was room in a full pipe")
            except BlockingIOError:
                pass
        got = b""
        while len(got) < count:
            got += os.read(read, 1 << 20)
        assert got == bytes(i & 0xFF for i in range(count))
        os.set_blocking(read, False)
        try:
            raise AssertionError(os.read(read, 9))
        except BlockingIOError:
            pass


@state
def ends(place):
    """One side closed, with and without content; both in one task; duplicates; odd flags."""
    no_writer, write = os.pipe()
    os.write(write, b"rest")
    os.close(write)
    read, no_reader = os.pipe()
    os.close(read)
    empty, write = os.pipe()
    os.close(write)
    one, two = os.pipe2(os.O_NONBLOCK)
    again = os.open(f"/proc/self/fd/{one}", os.O_RDWR)
    third = os.open(f"/proc/self/fd/{one}", os.O_WRONLY | os.O_NONBLOCK)
    dup = os.dup(one)
    os.write(two, b"both")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    yield
    assert os.read(no_writer, 9) == b"rest"
    assert os.read(no_writer, 9) == b""
    assert os.read(empty, 9) == b""
    try:
        os.write(no_reader, b"x")
        raise AssertionError("somebody reads")
    except BrokenPipeError:
        pass
    assert os.read(dup, 9) == b"both"
    os.write(third, b"third")
    assert os.read(again, 9) == b"third"
    assert not os.get_blocking(one)
    assert os.get_blocking(again)


@state
def packets(place):
    """O_DIRECT: packets stay packets."""
    read, write = os.pipe2(os.O_DIRECT)
    sent = [b"one", b"x" * 4096, b"y" * 6000, b"last"]
    for packet in sent:
        os.write(write, packet)
    idle = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    yield
    got = [os.read(read, 1 << 16) for _ in range(5)]
    assert got == [b"one", b"x" * 4096, b"y" * 4096, b"y" * 1904, b"last"]
    os.write(idle[1], b"a")
    os.write(idle[1], b"b")
    assert (os.read(idle[0], 9), os.read(idle[0], 9)) == (b"a", b"b")


@state
def many(place):
    """A thousand pipes."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pipes = [os.pipe() for _ in range(1000)]
    for i, (_, write) in enumerate(pipes):
        os.write(write, b"%d" % i)
    yield
    for i, (read, _) in enumerate(pipes):
        assert os.read(read, 99) == b"%d" % i


@state
def waiting(place):
    """A reader of an empty pipe, a writer to a full one, openers of a fifo."""
    empty_read, empty_write = os.pipe()
    full_read, full_write = os.pipe()
    os.write(full_write, bytes(1 << 16))
    os.mkfifo(place / "fifo")

    def reader():
        os.close(empty_write)
        return 0 if os.read(empty_read, 9) == b"now" else 1

    def writer():
        os.close(full_read)
        return 0 if os.write(full_write, b"z" * 10) == 10 else 1

    def opener():
        return 0 if os.read(os.open(place / "fifo", os.O_RDONLY), 9) == b"fifo" else 1

    pids = [child(body) for body in (reader, writer, opener)]
    time.sleep(0.2)
    yield
    os.write(empty_write, b"now")
    size = 0
    while size < 1 << 16:
        size += len(os.read(full_read, 1 << 16))
    assert os.read(full_read, 99) == b"z" * 10 if size == 1 << 16 else size == (1 << 16) + 10
    fifo = os.open(place / "fifo", os.O_WRONLY)
    os.write(fifo, b"fifo")
    assert [ended(pid) for pid in pids] == [0, 0, 0]


@state
def fifos(place):
    """By all modes; content; sizes; one side only; between tasks; two names of one."""
    for name in ("rdwr", "pair", "alone", "writer", "link"):
        os.mkfifo(place / name)
    os.link(place / "link", place / "linked")
    rdwr = os.open(place / "rdwr", os.O_RDWR)
    os.write(rdwr, b"content")
    fcntl.fcntl(rdwr, F_SETPIPE_SZ, 1 << 18)
    read = os.open(place / "pair", os.O_RDONLY | os.O_NONBLOCK)
    write = os.open(place / "pair", os.O_WRONLY)
    os.write(write, b"queued")
    alone = os.open(place / "alone", os.O_RDONLY | os.O_NONBLOCK)
    path = os.open(place / "alone", os.O_PATH)
    pair = os.open(place / "writer", os.O_RDWR)
    writer = os.open(place / "writer", os.O_WRONLY | os.O_APPEND)
    os.close(pair)
    one, two = os.open(place / "link", os.O_RDWR), os.open(place / "linked", os.O_RDWR)
    os.write(one, b"through")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def body():
        await_file(place / "child")
        os.write(write, b" and more")

    pid = child(body)
    yield
    assert os.read(rdwr, 99) == b"content"
    assert fcntl.fcntl(rdwr, F_GETPIPE_SZ) == 1 << 18
    (place / "child").touch()
    assert ended(pid) == 0
    assert os.read(read, 99) == b"queued and more"
    assert os.read(alone, 9) == b""
    assert os.fstat(path).st_ino == os.fstat(alone).st_ino
    assert os.read(two, 99) == b"through"
    try:
        os.write(writer, b"x")
        raise AssertionError("somebody reads the fifo")
    except BrokenPipeError:
        pass


@state
def splice(place):
    """Content that is not in whole pages: spliced from a file, partly read."""
    (place / "data").write_bytes(b"0123456789" * 2000)
    file = os.open(place / "data", os.O_RDONLY)
    read, write = os.pipe()
    assert os.splice(file, write, 7000, 5) == 7000
    os.write(write, b"tail")
    head = os.read(read, 100)
    copy_read, copy_write = os.pipe()
    fcntl.fcntl(copy_write, F_SETPIPE_SZ, 1 << 16)
    yield
    whole = head + os.read(read, 1 << 16)
    assert whole == (b"0123456789" * 2000)[5:7005] + b"tail"
    assert os.close(copy_read) is None


@state
def outside(place):
    """The other end is in a task that has left the tree."""
    read, write = os.pipe()

    def keeper():
        if os.fork():
            os._exit(0)
        os.setsid()
        os.close(read)
        (place / "kept").touch()
        await_file(place / "go")

    assert ended(child(keeper)) == 0
    await_file(place / "kept")
    os.close(write)
    yield


if __name__ == "__main__":
    chosen()

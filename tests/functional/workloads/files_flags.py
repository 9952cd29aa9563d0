# SPDX-License-Identifier: Apache-2.0
"""Open files by path: flags, positions, sharing, files that can no longer be opened that way."""

import fcntl
import os
import signal
import time
from pathlib import Path

from files_base import await_file, call, child, chosen, ended, state

O_PATH = os.O_PATH
F_GETFL = fcntl.F_GETFL


def flags_of(fd):
    return fcntl.fcntl(fd, F_GETFL)


@state
def flags(place):
    """Every flag that stays with a description."""
    data = place / "data"
    data.write_bytes(b"0123456789" * 1000)
    wanted = [
        os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3, os.O_WRONLY | os.O_APPEND,
        os.O_RDWR | os.O_DSYNC, os.O_RDWR | os.O_SYNC, os.O_RDONLY | os.O_NOATIME,
        os.O_RDONLY | os.O_NOFOLLOW, os.O_RDONLY | os.O_NONBLOCK, os.O_RDWR | os.O_DIRECT,
        os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_NOCTTY, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK,
    ]  # fmt: skip
    fds = [os.open(data, flag) for flag in wanted]
    asynchronous = os.open(data, os.O_RDONLY)
    fcntl.fcntl(asynchronous, fcntl.F_SETFL, os.O_ASYNC)
    directory = [os.open(place, flag) for flag in (os.O_RDONLY, os.O_DIRECTORY, os.O_NOATIME)]
    every = [*fds, asynchronous, *directory]
    before = [flags_of(fd) for fd in every]
    yield
    assert [flags_of(fd) for fd in every] == before
    os.write(fds[4], b"end")
    assert data.read_bytes().endswith(b"9end")


@state
def created_exclusive(place):
    """Opened with O_CREAT, O_EXCL and O_TRUNC: none of it may happen again."""
    fd = os.open(place / "data", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TRUNC, 0o600)
    os.write(fd, b"content")
    yield
    assert os.pread(fd, 99, 0) == b"content"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7
    assert os.fstat(fd).st_mode & 0o777 == 0o600


@state
def path_only(place):
    """O_PATH of everything there is."""
    (place / "file").write_bytes(b"x")
    os.mkdir(place / "folder")
    os.symlink("nowhere", place / "link")
    os.mkfifo(place / "fifo")
    names = ["file", "folder", "link", "fifo"]
    fds = [os.open(place / name, O_PATH | os.O_NOFOLLOW) for name in names]
    names += ["/dev/null", "/dev/tty", "/proc", "/proc/self/status", "/sys", "/bin/sh", "/"]
    fds += [os.open(name, O_PATH) for name in names[4:]]
    fds.append(os.open(place / "folder", O_PATH | os.O_DIRECTORY))
    names.append("folder")
    before = [(os.fstat(fd), os.readlink(f"/proc/self/fd/{fd}"), flags_of(fd)) for fd in fds]
    yield
    for fd, name, (stat, link, flag) in zip(fds, names, before, strict=True):
        now = os.fstat(fd)
        if "proc" not in link:
            assert (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino), name
        assert now.st_mode == stat.st_mode, name
        assert os.readlink(f"/proc/self/fd/{fd}") == link
        assert flags_of(fd) == flag, name
    assert os.readlink("", dir_fd=fds[2]) == "nowhere"
    reader = os.open(f"/proc/self/fd/{fds[0]}", os.O_RDONLY)
    assert os.read(reader, 9) == b"x"


@state
def positions(place):
    """At the end, behind it, very far, at a hole."""
    data = place / "data"
    data.write_bytes(b"0123456789")
    fds = [os.open(data, os.O_RDWR) for _ in range(5)]
    wanted = [0, 10, 12345, 1 << 40, (1 << 43)]
    for fd, position in zip(fds, wanted, strict=True):
        os.lseek(fd, position, os.SEEK_SET)
    sparse = os.open(place / "sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(sparse, b"x", 1 << 30)
    hole = os.lseek(sparse, 0, os.SEEK_HOLE)
    appended = os.open(data, os.O_WRONLY | os.O_APPEND)
    os.lseek(appended, 5, os.SEEK_SET)
    yield
    for fd, position in zip(fds, wanted, strict=True):
        assert os.lseek(fd, 0, os.SEEK_CUR) == position
    assert os.lseek(sparse, 0, os.SEEK_CUR) == hole
    assert os.lseek(appended, 0, os.SEEK_CUR) == 5
    assert os.fstat(sparse).st_size == (1 << 30) + 1


@state
def sharing(place):
    """One description by dup and by fork, others of the same file apart."""
    data = place / "data"
    data.write_bytes(b"0123456789")
    one = os.open(data, os.O_RDWR)
    dup, other = os.dup(one), os.open(data, os.O_RDWR)
    os.set_inheritable(dup, True)
    through = os.open(f"/proc/self/fd/{one}", os.O_RDONLY)
    own = []

    def body():
        own.append(os.open(data, os.O_RDONLY))
        os.lseek(own[0], 7, os.SEEK_SET)
        (place / "set").touch()
        await_file(place / "move")
        os.lseek(dup, 3, os.SEEK_SET)
        return 0 if os.read(own[0], 1) == b"7" else 1

    pid = child(body)
    await_file(place / "set")
    yield
    (place / "move").touch()
    assert ended(pid) == 0
    assert os.lseek(one, 0, os.SEEK_CUR) == 3
    assert os.lseek(other, 0, os.SEEK_CUR) == 0
    assert os.lseek(through, 0, os.SEEK_CUR) == 0
    assert os.get_inheritable(dup)
    assert not os.get_inheritable(one)


@state
def not_permitted(place):
    """Opened before its mode and the task's user forbade it."""
    data = place / "data"
    data.write_bytes(b"secret")
    read, write = os.open(data, os.O_RDONLY), os.open(data, os.O_WRONLY)
    data.chmod(0)
    os.mkdir(place / "closed", 0o700)
    inner = os.open(place / "closed" / "inner", os.O_RDWR | os.O_CREAT, 0o600)

    def body():
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        os.close(await_go)
        while not os.read(go, 1):
            time.sleep(0.01)
        assert os.read(read, 9) == b"secret"
        assert os.write(write, b"S") == 1
        assert os.write(inner, b"S") == 1
        try:
            os.open(data, os.O_RDONLY)
        except PermissionError:
            return 0
        return 1

    go, await_go = os.pipe()
    pid = child(body)
    os.close(go)
    yield
    os.write(await_go, b"x")
    assert ended(pid) == 0


@state
def running_program(place):
    """A file that is executed, open for reading; one that was written, then executed."""
    busy = os.open(os.readlink("/proc/self/exe"), os.O_RDONLY)
    script = place / "sleep"
    script.write_bytes(Path("/bin/sleep").read_bytes())
    script.chmod(0o755)
    pid = child(lambda: os.execv(script, ["sleep", "1000"]))
    time.sleep(0.1)
    held = os.open(script, os.O_RDONLY)
    yield
    assert os.pread(busy, 4, 0) == b"\x7fELF"
    assert os.pread(held, 4, 0) == b"\x7fELF"
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL


@state
def renamed(place):
    """Renamed after it was opened, also by its directory."""
    os.mkdir(place / "old")
    data = place / "old" / "data"
    data.write_bytes(b"content")
    fd = os.open(data, os.O_RDONLY)
    folder = os.open(place / "old", os.O_RDONLY)
    data.rename(place / "old" / "other")
    (place / "old").rename(place / "new")
    yield
    assert os.read(fd, 99) == b"content"
    assert os.readlink(f"/proc/self/fd/{fd}") == str(place / "new" / "other")
    assert os.listdir(folder) == ["other"]


@state
def odd_names(place):
    """Names with blanks, newlines, quotes, no UTF-8, and what looks like a deleted one."""
    names = [b"a b", b"new\nline", b"back\\slash", b"\xff\xfe", b"x (deleted)", b"a" * 255, b"\"'"]
    folder = os.fsencode(place)
    fds = [os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT) for name in names]
    for i, fd in enumerate(fds):
        os.write(fd, b"%d" % i)
    deep = os.open(place, os.O_DIRECTORY)
    for _ in range(12):
        os.mkdir("d" * 200, dir_fd=deep)
        deep = os.open("d" * 200, os.O_DIRECTORY, dir_fd=deep)
    yield
    for i, (fd, name) in enumerate(zip(fds, names, strict=True)):
        assert os.pread(fd, 9, 0) == b"%d" % i
        assert os.path.samestat(os.fstat(fd), os.stat(os.path.join(folder, name)))
    assert os.listdir(deep) == []


@state
def directory_position(place):
    """In the middle of a directory; cloned by dup; at its end."""
    folder = place / "many"
    folder.mkdir()
    for i in range(500):
        (folder / f"file{i}").touch()
    fd, end = os.open(folder, os.O_RDONLY), os.open(folder, os.O_RDONLY)
    room = bytearray(1024)
    from ctypes import c_char

    buffer = (c_char * 1024).from_buffer(room)

    def entries(where):
        size = call("syscall", 217, where, buffer, 1024)
        names, at = [], 0
        while at < size:
            length = int.from_bytes(room[at + 16 : at + 18], "little")
            names.append(bytes(room[at + 19 : at + length]).split(b"\0")[0])
            at += length
        return names

    seen = entries(fd) + entries(fd)
    while entries(end):
        pass
    yield
    while more := entries(fd):
        seen += more
    assert sorted(seen) == sorted([b".", b"..", *(b"file%d" % i for i in range(500))])
    assert entries(end) == []


@state
def numbers(place):
    """Numbers far apart, up to the limit; thousands; 0 to 2 closed; close-on-exec mixed."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    null = os.open("/dev/null", os.O_RDWR)
    (place / "data").write_bytes(b"0123456789")
    file = os.open(place / "data", os.O_RDONLY)
    highest = min(hard, 1 << 20) - 1
    wanted = [300, 1023, 1024, 4095, highest - 5, highest]
    for i, number in enumerate(wanted):
        os.dup2(file, number, inheritable=bool(i % 2))
    for number in range(5000, 7000):
        os.dup2(null, number, inheritable=bool(number % 3))
    for number in range(3):
        os.close(number)
    yield
    for i, number in enumerate(wanted):
        assert os.pread(number, 1, i) == b"%d" % i
        assert os.get_inheritable(number) == bool(i % 2)
    for number in range(5000, 7000):
        assert os.get_inheritable(number) == bool(number % 3)
        assert os.write(number, b"x") == 1
    os.lseek(highest, 5, os.SEEK_SET)
    assert os.lseek(file, 0, os.SEEK_CUR) == 5
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            continue
        raise AssertionError(f"{number} is open")


if __name__ == "__main__":
    chosen()

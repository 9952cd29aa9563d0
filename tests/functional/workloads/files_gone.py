# SPDX-License-Identifier: Apache-2.0
"""Files, directories and fifos whose name is gone, in all ways in which it can be gone."""

import contextlib
import os
import shutil
import socket
import struct
import time

from files_base import LackingError, await_file, call, child, chosen, ended, state


def made(path, content=b"ghost", mode=0o640):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    os.write(fd, content)
    return fd


def link_of(fd):
    return os.readlink(f"/proc/self/fd/{fd}")


def is_gone(fd):
    assert os.fstat(fd).st_nlink == 0
    assert link_of(fd).endswith(" (deleted)")


@state
def plain(place):
    """Several descriptions and tasks, one inode; mode, owner, times."""
    path = place / "gone"
    one = made(path, b"0123456789")
    read, write = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY | os.O_APPEND)
    os.fchown(one, 1234, 4321)
    os.fchmod(one, 0o2604)
    os.utime(one, ns=(1_500_000_000_123_456_000, 1_400_000_000_987_654_000))
    path.unlink()
    os.lseek(read, 4, os.SEEK_SET)

    def body():
        await_file(place / "child")
        return 0 if os.read(read, 2) == b"45" else 1

    pid = child(body)
    before = os.fstat(one)
    yield
    now = os.fstat(one)
    for name in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime"):
        assert getattr(now, name) == getattr(before, name), name
    for fd in (one, read, write):
        is_gone(fd)
        assert os.path.samestat(os.fstat(fd), now)
    (place / "child").touch()
    assert ended(pid) == 0
    os.write(write, b"!")
    assert os.pread(one, 99, 0) == b"0123456789!"
    assert os.lseek(read, 0, os.SEEK_CUR) == 6
    assert not path.exists()


@state
def empty(place):
    """Without content; not readable by mode; opened write-only."""
    first = made(place / "empty", b"", 0)
    (place / "empty").unlink()
    second = os.open(place / "written", os.O_WRONLY | os.O_CREAT, 0o200)
    os.write(second, b"written")
    (place / "written").unlink()
    yield
    is_gone(first)
    is_gone(second)
    assert os.fstat(first).st_mode & 0o777 == 0
    again = os.open(f"/proc/self/fd/{second}", os.O_RDONLY)
    assert os.read(again, 99) == b"written"


@state
def sparse(place):
    """Large, nearly all holes; a tail behind the last data."""
    fd = made(place / "sparse", b"")
    os.pwrite(fd, b"first", 0)
    os.pwrite(fd, b"middle", 5 << 20)
    os.pwrite(fd, b"far", 3 << 30)
    os.ftruncate(fd, (7 << 30) + 123)
    os.lseek(fd, 99, os.SEEK_SET)
    (place / "sparse").unlink()
    blocks = os.fstat(fd).st_blocks
    yield
    is_gone(fd)
    assert os.fstat(fd).st_size == (7 << 30) + 123
    assert os.fstat(fd).st_blocks <= blocks + 16
    assert os.pread(fd, 5, 0) == b"first"
    assert os.pread(fd, 6, 5 << 20) == b"middle"
    assert os.pread(fd, 3, 3 << 30) == b"far"
    assert os.lseek(fd, 8 << 10, os.SEEK_DATA) == 5 << 20
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096


@state
def large(place):
    """More content than the limit permits, unless it is raised."""
    fd = made(place / "large", b"")
    for i in range(3):
        os.pwrite(fd, b"%d" % i * (1 << 20), i << 20)
    (place / "large").unlink()
    yield
    is_gone(fd)
    assert os.pread(fd, 5, (2 << 20) - 3) == b"11122"


@state
def written_zeros(place):
    """Zeros that were written and holes."""
    fd = made(place / "zeros", bytes(1 << 20))
    os.ftruncate(fd, 1 << 21)
    (place / "zeros").unlink()
    yield
    is_gone(fd)
    assert os.fstat(fd).st_size == 1 << 21
    assert os.pread(fd, 1 << 21, 0) == bytes(1 << 21)


@state
def name_taken(place):
    """Another file has the name now."""
    fd = made(place / "name", b"old")
    (place / "name").unlink()
    (place / "name").write_bytes(b"new")
    new = os.open(place / "name", os.O_RDONLY)
    third = made(place / "third", b"third")
    (place / "third").unlink()
    (place / "third").mkdir()
    replaced = made(place / "replaced", b"replaced")
    (place / "other").write_bytes(b"by rename")
    (place / "other").rename(place / "replaced")
    yield
    is_gone(fd)
    assert os.pread(fd, 99, 0) == b"old"
    assert os.pread(new, 99, 0) == b"new"
    assert (place / "name").read_bytes() == b"new"
    assert os.pread(third, 99, 0) == b"third"
    assert (place / "third").is_dir()
    assert os.pread(replaced, 99, 0) == b"replaced"
    assert (place / "replaced").read_bytes() == b"by rename"


@state
def two_of_one_name(place):
    """Two deleted files that had the same name."""
    fds = []
    for i in range(3):
        fds.append(made(place / "name", b"%d" % i))
        (place / "name").unlink()
    yield
    for i, fd in enumerate(fds):
        is_gone(fd)
        assert os.pread(fd, 9, 0) == b"%d" % i
        assert link_of(fd) == f"{place}/name (deleted)"


@state
def names(place):
    """One deleted file that was opened by each of its names."""
    (place / "a").mkdir()
    (place / "b").mkdir()
    paths = [place / "a" / "one", place / "a" / "two", place / "b" / "three"]
    fds = [made(paths[0], b"content")]
    for path in paths[1:]:
        os.link(paths[0], path)
        fds += [os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR | os.O_APPEND)]
    for path in paths:
        path.unlink()
    paths[1].write_bytes(b"taken")
    (place / "b").rmdir()
    yield
    held = [os.fstat(fd) for fd in fds]
    assert {(one.st_ino, one.st_nlink) for one in held} == {(held[0].st_ino, 0)}
    wanted = [f"{paths[i]} (deleted)" for i in (0, 1, 1, 2, 2)]
    assert [link_of(fd) for fd in fds] == wanted
    os.write(fds[2], b" and more")
    assert os.pread(fds[3], 99, 0) == b"content and more"
    assert paths[1].read_bytes() == b"taken"
    assert sorted(os.listdir(place / "a")) == ["two"]
    assert not (place / "b").exists()


@state
def linked_names(place):
    """Opened by two names that are gone, while a third is left."""
    fds = [made(place / "one", b"content")]
    os.link(place / "one", place / "two")
    os.link(place / "one", place / "three")
    fds.append(os.open(place / "two", os.O_RDWR))
    (place / "one").unlink()
    (place / "two").unlink()
    yield
    assert [link_of(fd) for fd in fds] == [f"{place}/{n} (deleted)" for n in ("one", "two")]
    assert {os.fstat(fd).st_ino for fd in fds} == {os.stat(place / "three").st_ino}
    assert os.fstat(fds[0]).st_nlink == 1


def linked(place):
    """A file opened by ``a/name``, which is gone and taken; its other name is ``b/c/other``."""
    (place / "a").mkdir()
    (place / "b" / "c").mkdir(parents=True)
    fd = made(place / "a" / "name", b"content")
    os.link(place / "a" / "name", place / "b" / "c" / "other")
    (place / "a" / "name").unlink()
    (place / "a" / "name").write_bytes(b"taken")
    return fd


@state
def linked_near(place):
    """Opened by a name that is gone, while another name is left."""
    fd = made(place / "name", b"content")
    os.link(place / "name", place / "other")
    read = os.open(place / "name", os.O_RDONLY)
    (place / "name").unlink()
    before, names = os.fstat(fd), sorted(os.listdir(place))
    yield
    now = os.fstat(fd)
    assert (now.st_ino, now.st_nlink, now.st_mode) == (before.st_ino, 1, before.st_mode)
    os.write(fd, b" and more")
    assert (place / "other").read_bytes() == b"content and more"
    assert os.read(read, 99) == b"content and more"
    assert not {n for n in os.listdir(place) if "link" in n or "ghost" in n}.difference(names)


@state
def linked_far(place):
    """The other name is in another directory, and the old name is taken."""
    fd = linked(place)
    inode = os.fstat(fd).st_ino
    yield
    assert (os.fstat(fd).st_ino, os.fstat(fd).st_nlink) == (inode, 1)
    os.write(fd, b"!")
    assert (place / "b" / "c" / "other").read_bytes() == b"content!"
    assert (place / "a" / "name").read_bytes() == b"taken"
    assert os.listdir(place / "a") == ["name"]


@state
def remapped(place):
    """The same with a name that is made at the dump, which stays if the task runs on."""
    fd = made(place / "name", b"content")
    os.link(place / "name", place / "other")
    (place / "name").unlink()
    inode = os.fstat(fd).st_ino
    yield
    left = [name for name in os.listdir(place) if name.startswith("link_remap.")]
    now = os.fstat(fd)
    assert (now.st_ino, now.st_nlink) == (inode, 1 + len(left))
    os.write(fd, b"!")
    assert (place / "other").read_bytes() == b"content!"


@state
def parent_gone(place):
    """The directory is removed as well, and its parent."""
    (place / "a" / "b").mkdir(parents=True)
    fd = made(place / "a" / "b" / "file")
    folder = os.open(place / "a" / "b", os.O_RDONLY | os.O_DIRECTORY)
    (place / "a" / "b" / "file").unlink()
    (place / "a" / "b").rmdir()
    (place / "a").rmdir()
    yield
    is_gone(fd)
    is_gone(folder)
    assert os.pread(fd, 99, 0) == b"ghost"
    assert os.listdir(folder) == []
    assert not (place / "a").exists()


@state
def parent_renamed(place):
    """Deleted, then its directory was given another name."""
    (place / "a").mkdir()
    fd = made(place / "a" / "file")
    (place / "a" / "file").unlink()
    (place / "a").rename(place / "b")
    yield
    is_gone(fd)
    assert os.pread(fd, 99, 0) == b"ghost"
    assert link_of(fd) == f"{place}/b/file (deleted)"


@state
def directory(place):
    """A removed directory, by descriptor and O_PATH."""
    folder = place / "folder"
    folder.mkdir(0o750)
    fd, path = os.open(folder, os.O_RDONLY), os.open(folder, os.O_PATH)
    folder.rmdir()
    taken = place / "taken"
    taken.mkdir()
    other = os.open(taken, os.O_RDONLY)
    taken.rmdir()
    taken.write_bytes(b"a file now")
    yield
    for one in (fd, path, other):
        assert os.fstat(one).st_nlink == 0
    assert os.fstat(fd).st_mode & 0o777 == 0o750
    assert os.path.samestat(os.fstat(fd), os.fstat(path))
    assert os.listdir(fd) == []
    assert taken.read_bytes() == b"a file now"
    try:
        os.open("new", os.O_CREAT | os.O_RDWR, dir_fd=fd)
    except FileNotFoundError:
        return
    raise AssertionError("the directory is not removed")


@state
def cwd(place):
    """The working directory is removed."""
    (place / "inner").mkdir()
    os.chdir(place / "inner")
    (place / "inner").rmdir()
    link = os.readlink("/proc/self/cwd")
    pid = child(lambda: await_file(place / "child"))
    yield
    assert os.readlink("/proc/self/cwd") == link == f"{place}/inner (deleted)"
    assert os.readlink(f"/proc/{pid}/cwd") == link
    try:
        os.getcwd()
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("the directory is there")
    (place / "child").touch()
    assert ended(pid) == 0


@state
def cwd_and_descriptor(place):
    """The removed working directory is open as well."""
    (place / "inner").mkdir()
    os.chdir(place / "inner")
    fd = os.open(".", os.O_RDONLY)
    (place / "inner").rmdir()
    (place / "inner").mkdir()
    yield
    assert os.readlink("/proc/self/cwd") == f"{place}/inner (deleted)"
    assert os.path.samestat(os.stat("/proc/self/cwd"), os.fstat(fd))
    assert not os.path.samestat(os.fstat(fd), os.stat(place / "inner"))


@state
def tmpfile(place):
    """O_TMPFILE: may still be linked; written and read by two."""
    linkable = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(linkable, b"linkable")
    closed = os.open(place, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL, 0o600)
    os.write(closed, b"not linkable")
    read = os.open(f"/proc/self/fd/{linkable}", os.O_RDONLY)
    yield
    assert os.read(read, 99) == b"linkable"
    assert os.fstat(closed).st_size == 12
    assert os.path.samestat(os.fstat(read), os.fstat(linkable))
    source = f"/proc/self/fd/{linkable}".encode()
    call("linkat", -100, source, -100, os.fsencode(place / "kept"), 0x400)
    assert (place / "kept").read_bytes() == b"linkable"


@state
def fifo(place):
    """A deleted fifo with content, with one side only, with both."""
    path = place / "fifo"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    read = os.open(path, os.O_RDONLY)
    os.write(both, b"queued")
    path.unlink()
    os.mkfifo(path)
    lonely = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    path.unlink()
    yield
    for fd in (both, read, lonely):
        is_gone(fd)
    assert os.read(read, 99) == b"queued"
    os.write(both, b"more")
    assert os.read(read, 99) == b"more"
    assert os.read(lonely, 9) == b""


@state
def symlink(place):
    """A deleted symbolic link, held by O_PATH."""
    path = place / "link"
    path.symlink_to("some/where")
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    path.unlink()
    yield
    is_gone(fd)
    assert os.readlink("", dir_fd=fd) == "some/where"


@state
def socket_and_device(place):
    """A deleted socket and a deleted device, held by O_PATH; one that is open."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(place / "socket"))
    path = os.open(place / "socket", os.O_PATH)
    (place / "socket").unlink()
    os.mknod(place / "null", 0o020600, os.makedev(1, 3))
    device = os.open(place / "null", os.O_RDWR)
    os.chmod(place / "null", 0o621)
    only = os.open(place / "null", os.O_PATH)
    (place / "null").unlink()
    server.close()
    yield
    is_gone(path)
    is_gone(only)
    is_gone(device)
    assert os.fstat(device).st_mode == 0o020621
    assert os.write(device, b"x") == 1
    assert os.path.samestat(os.fstat(device), os.fstat(only))
    assert os.fstat(only).st_rdev == os.makedev(1, 3)


@state
def attributes(place):
    """Extended attributes."""
    fd = made(place / "file")
    try:
        os.setxattr(fd, "user.one", b"1")
        os.setxattr(fd, "user.empty", b"")
    except OSError as error:
        raise LackingError("user attributes on its file system") from error
    os.setxattr(fd, "trusted.two", b"22")
    os.fchmod(fd, 0o6755)
    os.setxattr(fd, "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    entries = [(1, 7, -1), (2, 4, 1000), (4, 5, -1), (16, 5, -1), (32, 5, -1)]
    with contextlib.suppress(OSError):  # not all file systems have lists of access
        os.setxattr(
            fd,
            "system.posix_acl_access",
            struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *e) for e in entries),
        )
    before = {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
    mode = os.fstat(fd).st_mode
    (place / "file").unlink()
    yield
    is_gone(fd)
    assert {name: os.getxattr(fd, name) for name in os.listxattr(fd)} == before
    assert os.fstat(fd).st_mode == mode
    assert os.getxattr(fd, "user.one") == b"1"
    assert os.getxattr(fd, "trusted.two") == b"22"


@state
def on_tmpfs(place):
    """On another file system: /dev/shm, with and without another name."""
    folder = f"/dev/shm/torpor-{os.getpid()}"  # names that a dump gives are left in there
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    base = f"{folder}/file"
    fd = made(base, b"in memory")
    os.unlink(base)
    other = made(base, b"linked")
    os.link(base, base + "-other")
    os.unlink(base)
    yield
    try:
        is_gone(fd)
        assert os.pread(fd, 99, 0) == b"in memory"
        assert os.path.samestat(os.fstat(other), os.stat(base + "-other"))
    finally:
        shutil.rmtree(folder)


@state
def many(place):
    """Two hundred of them."""
    fds = []
    for i in range(200):
        fds.append(made(place / f"file{i}", b"%d" % i))
        (place / f"file{i}").unlink()
    yield
    for i, fd in enumerate(fds):
        is_gone(fd)
        assert os.pread(fd, 9, 0) == b"%d" % i
    time.sleep(0)


if __name__ == "__main__":
    chosen()

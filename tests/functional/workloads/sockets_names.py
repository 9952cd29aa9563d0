# SPDX-License-Identifier: Apache-2.0
"""Names of unix sockets, in all the ways in which a name is got and lost; the second argument
says which.
"""

import ctypes
import os
import socket
import stat
import struct

from files_base import child, chosen, ended, state

UNIX, DGRAM, SEQPACKET = socket.AF_UNIX, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET


def listener(name, kind=socket.SOCK_STREAM):
    one = socket.socket(UNIX, kind)
    one.bind(str(name) if not isinstance(name, bytes) else name)
    one.listen(5)
    return one


def calls(name, server, kind=socket.SOCK_STREAM):
    """A client can call by that name."""
    with socket.socket(UNIX, kind) as client:
        client.connect(str(name) if not isinstance(name, bytes) else name)
        accepted, _ = server.accept()
        with accepted:
            client.send(b"x")
            assert accepted.recv(10) == b"x"


def connected(name, server, kind=socket.SOCK_STREAM):
    client = socket.socket(UNIX, kind)
    client.connect(str(name))
    return client, server.accept()[0]


def talks(one, two):
    one.send(b"to two")
    assert two.recv(10) == b"to two"
    two.send(b"to one")
    assert one.recv(10) == b"to one"


def fails(name):
    with socket.socket(UNIX) as client:
        try:
            client.connect(str(name))
        except OSError:
            return
    raise AssertionError(f"{name} answers")


@state
def relative(place):
    """Bound and called by a relative name, in the directory of the name."""
    os.chdir(place)
    server = listener("rel")
    one, two = connected("rel", server)
    yield
    assert server.getsockname() == one.getpeername() == two.getsockname() == "rel"
    calls("rel", server)
    calls(place / "rel", server)
    talks(one, two)


@state
def relative_elsewhere(place):
    """Bound by a relative name, then the working directory changed."""
    (place / "inner").mkdir()
    (place / "other").mkdir()
    os.chdir(place / "inner")
    server = listener("rel")
    one, two = connected("rel", server)
    os.chdir(place / "other")
    yield
    assert os.getcwd() == str(place / "other")
    assert server.getsockname() == one.getpeername() == two.getsockname() == "rel"
    calls(place / "inner/rel", server)
    fails("rel")
    talks(one, two)


@state
def relative_same(place):
    """Two sockets with the same relative name in two directories."""
    servers = []
    for name in ("a", "b"):
        (place / name).mkdir()
        os.chdir(place / name)
        servers.append(listener("same"))
    pairs = []
    for name, server in zip("ab", servers, strict=True):
        os.chdir(place / name)
        pairs.append(connected("same", server))
    yield
    for name, server in zip("ab", servers, strict=True):
        calls(place / name / "same", server)
    for one, two in pairs:
        talks(one, two)


@state
def relative_dots(place):
    (place / "inner").mkdir()
    os.chdir(place / "inner")
    server = listener("../up")
    gram = socket.socket(UNIX, DGRAM)
    gram.bind("./gram")
    yield
    assert server.getsockname() == "../up"
    assert gram.getsockname() == "./gram"
    calls(place / "up", server)
    with socket.socket(UNIX, DGRAM) as one:
        one.sendto(b"x", str(place / "inner/gram"))
    assert gram.recv(5) == b"x"


@state
def renamed(place):
    """The file was given another name after bind(2)."""
    server = listener(place / "old name")
    one, two = connected(place / "old name", server)
    os.rename(place / "old name", place / "new name")
    yield
    assert server.getsockname() == one.getpeername() == two.getsockname() == str(place / "old name")
    calls(place / "new name", server)
    assert not (place / "old name").exists()
    talks(one, two)


@state
def renamed_directory(place):
    """Its directory was given another name."""
    (place / "old").mkdir()
    server = listener(place / "old/name")
    os.rename(place / "old", place / "new")
    yield
    assert server.getsockname() == str(place / "old/name")
    calls(place / "new/name", server)
    assert not (place / "old").exists()


@state
def linked(place):
    """A second name by link(2), as a lock file would be; both answer."""
    server = listener(place / "old name")
    os.link(place / "old name", place / "new name")
    yield
    assert server.getsockname() == str(place / "old name")
    calls(place / "old name", server)
    calls(place / "new name", server)


@state
def linked_moved(place):
    """The first name is gone, one by link(2) is left (as erlang's epmd and others do)."""
    server = listener(place / "old name")
    os.link(place / "old name", place / "new name")
    os.unlink(place / "old name")
    yield
    assert server.getsockname() == str(place / "old name")
    calls(place / "new name", server)
    assert not (place / "old name").exists()


@state
def renamed_over(place):
    """Bound beside and renamed over the old name, of which the old socket is held still."""
    old = listener(place / "name")
    new = listener(place / "name.new")
    os.rename(place / "name.new", place / "name")
    yield
    assert old.getsockname() == str(place / "name")
    assert new.getsockname() == str(place / "name.new")
    calls(place / "name", new)


@state
def rebound(place):
    """A name was removed and bound anew: two sockets of one name, one can be called."""
    old = listener(place / "name")
    first = connected(place / "name", old)
    os.unlink(place / "name")
    new = listener(place / "name")
    second = connected(place / "name", new)
    yield
    assert old.getsockname() == new.getsockname() == str(place / "name")
    calls(place / "name", new)
    talks(*first)
    talks(*second)


@state
def deleted(place):
    """Nothing is at the name any more; connections live on."""
    server = listener(place / "name")
    one, two = connected(place / "name", server)
    gram = socket.socket(UNIX, DGRAM)
    gram.bind(str(place / "gram"))
    sender = socket.socket(UNIX, DGRAM)
    sender.connect(str(place / "gram"))
    os.unlink(place / "name")
    os.unlink(place / "gram")
    yield
    assert server.getsockname() == two.getsockname() == one.getpeername() == str(place / "name")
    assert not (place / "name").exists()
    assert not (place / "gram").exists()
    assert sender.getpeername() == gram.getsockname() == str(place / "gram")
    talks(one, two)
    sender.send(b"x")
    assert gram.recv(5) == b"x"


@state
def deleted_directory(place):
    """The directory of the name is gone too."""
    (place / "inner/most").mkdir(parents=True)
    server = listener(place / "inner/most/name")
    one, two = connected(place / "inner/most/name", server)
    os.unlink(place / "inner/most/name")
    os.rmdir(place / "inner/most")
    os.rmdir(place / "inner")
    yield
    assert server.getsockname() == str(place / "inner/most/name")
    assert not (place / "inner").exists()
    talks(one, two)


@state
def relative_deleted(place):
    os.chdir(place)
    server = listener("name")
    one, two = connected("name", server)
    os.unlink("name")
    yield
    assert server.getsockname() == two.getsockname() == one.getpeername() == "name"
    assert not (place / "name").exists()
    talks(one, two)


@state
def relative_directory_gone(place):
    """A relative name in a directory that is gone, which is the working directory still."""
    (place / "inner").mkdir()
    os.chdir(place / "inner")
    server = listener("name")
    os.unlink("name")
    os.rmdir(place / "inner")
    yield
    assert server.getsockname() == "name"


@state
def other_file(place):
    """A regular file has taken the name."""
    server = listener(place / "name")
    os.unlink(place / "name")
    (place / "name").write_text("precious")
    yield
    assert server.getsockname() == str(place / "name")
    assert (place / "name").read_text() == "precious"


@state
def other_directory(place):
    """A directory has taken the name."""
    server = listener(place / "name")
    os.unlink(place / "name")
    (place / "name").mkdir()
    (place / "name/file").write_text("precious")
    yield
    assert server.getsockname() == str(place / "name")
    assert (place / "name/file").read_text() == "precious"


@state
def longest(place):
    """A name that fills sun_path to its last byte."""
    os.chdir(place)
    name = b"n" * 108
    server = listener_of(name)
    one = socket.socket(UNIX)
    assert called(one, name) == 0
    two, _ = server.accept()
    hidden = listener(b"\0" + b"h" * 107)
    yield
    assert server.getsockname() == two.getsockname() == name.decode()
    with socket.socket(UNIX) as again:
        assert called(again, name) == 0
        assert server.accept()
    calls(b"\0" + b"h" * 107, hidden)
    talks(one, two)


def called(one, name, call="connect"):
    """By a name without NUL at its end, which Python does not make."""
    libc = ctypes.CDLL(None, use_errno=True)
    return getattr(libc, call)(one.fileno(), struct.pack("H", 1) + name, 2 + len(name))


def listener_of(name):
    one = socket.socket(UNIX)
    assert called(one, name, "bind") == 0
    one.listen(5)
    return one


@state
def abstract(place):
    """Abstract names: with NULs in and at the end, of NULs only, and binary."""
    base = b"\0torpor" + str(os.getpid()).encode()
    names = [base, base + b"\0", base + b"\0\0", base + b"\0in\0", base + b"\xff\n", b"\0\0" + base]
    servers = [listener(name) for name in names]
    grams = []
    for name in names:
        gram = socket.socket(UNIX, DGRAM)
        gram.bind(name + b"g")
        grams.append(gram)
    yield
    for name, server, gram in zip(names, servers, grams, strict=True):
        assert server.getsockname() == name
        calls(name, server)
        with socket.socket(UNIX, DGRAM) as one:
            one.sendto(b"x", name + b"g")
        assert gram.recv(5) == b"x"


@state
def autobound(place):
    """Names by the kernel's choice, of receivers and of clients."""
    server = listener(b"")
    gram = socket.socket(UNIX, DGRAM)
    gram.bind(b"")
    client = socket.socket(UNIX)
    client.bind(b"")
    client.connect(server.getsockname())
    accepted, who = server.accept()
    passing = socket.socket(UNIX, DGRAM)
    passing.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    passing.sendto(b"named by sending", gram.getsockname())
    names = [each.getsockname() for each in (server, gram, client, passing)]
    yield
    assert [each.getsockname() for each in (server, gram, client, passing)] == names
    assert accepted.getpeername() == who == names[2]
    assert gram.recvfrom(100) == (b"named by sending", names[3])
    talks(client, accepted)


@state
def by_symlink(place):
    """Bound by a path with a symlink in it."""
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    server = listener(place / "link/name")
    yield
    assert server.getsockname() == str(place / "link/name")
    calls(place / "real/name", server)


@state
def by_descriptor(place):
    """Bound by a path of /proc/self/fd, which is gone or another's afterwards."""
    (place / "inner").mkdir()
    fd = os.open(place / "inner", os.O_PATH)
    server = listener(f"/proc/self/fd/{fd}/name")
    os.close(fd)
    yield
    assert server.getsockname() == f"/proc/self/fd/{fd}/name"
    calls(place / "inner/name", server)


@state
def mode_and_owner(place):
    one = listener(place / "one")
    os.chown(place / "one", 12, 34)
    os.chmod(place / "one", 0o604)
    os.umask(0o177)
    two = listener(place / "two")
    yield
    found = os.stat(place / "one")
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o604, 12, 34)
    assert os.stat(place / "two").st_mode & 0o777 == 0o600
    assert stat.S_ISSOCK(os.fstat(two.fileno()).st_mode)
    calls(place / "one", one)


@state
def descriptor_mode(place):
    """fchmod(2) and fchown(2) of the socket itself, which its file gets at bind(2)."""
    one = socket.socket(UNIX)
    os.fchmod(one.fileno(), 0o640)
    os.fchown(one.fileno(), 12, 34)
    alone = socket.socket(UNIX)
    os.fchmod(alone.fileno(), 0o600)
    os.fchown(alone.fileno(), 5, 6)
    one.bind(str(place / "one"))
    yield
    found = os.fstat(one.fileno())
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 12, 34)
    found = os.fstat(alone.fileno())
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o600, 5, 6)


@state
def other_root(place):
    """The socket of a task that has another root directory."""
    (place / "root").mkdir()
    reading, writing = os.pipe()

    def body():
        os.chroot(place / "root")
        os.chdir("/")
        server = listener("/name")
        os.write(writing, b"x")
        os.read(0, 0)
        accepted, _ = server.accept()
        assert server.getsockname() == "/name"
        assert accepted.recv(5) == b"x"

    pid = child(body)
    assert os.read(reading, 1) == b"x"
    yield
    with socket.socket(UNIX) as client:
        client.connect(str(place / "root/name"))
        client.send(b"x")
        assert ended(pid) == 0


@state
def beside_name(place):
    """A client with a name of its own, and one whose name is gone."""
    server = listener(place / "server")
    pairs = []
    for name in ("one", "two"):
        client = socket.socket(UNIX)
        client.bind(str(place / name))
        client.connect(str(place / "server"))
        pairs.append((client, server.accept()[0]))
    os.unlink(place / "two")
    server.close()
    yield
    assert [two.getpeername() for _, two in pairs] == [str(place / "one"), str(place / "two")]
    assert (place / "one").is_socket()
    assert not (place / "two").exists()
    for pair in pairs:
        talks(*pair)


@state
def pair_named(place):
    """Ends of socketpair(2) that were bound afterwards."""
    one, two = socket.socketpair()
    one.bind(str(place / "one"))
    two.bind(b"\0" + os.fsencode(place))
    yield
    assert one.getsockname() == two.getpeername() == str(place / "one")
    assert two.getsockname() == one.getpeername() == b"\0" + os.fsencode(place)
    talks(one, two)


@state
def bound_only(place):
    """Bound, neither listening nor connected; stream, datagram and packets."""
    made = []
    for kind in (socket.SOCK_STREAM, DGRAM, SEQPACKET):
        one = socket.socket(UNIX, kind)
        one.bind(str(place / str(int(kind))))
        made.append(one)
    yield
    for one in made:
        assert one.getsockname() == str(place / str(int(one.type)))
    for one in (made[0], made[2]):
        one.listen(3)
        calls(one.getsockname(), one, one.type)


@state
def opath_left(place):
    """The file of a socket that is closed, open with O_PATH."""
    with socket.socket(UNIX) as one:
        one.bind(str(place / "name"))
    fd = os.open(place / "name", os.O_PATH)
    yield
    assert os.readlink(f"/proc/self/fd/{fd}") == str(place / "name")
    assert stat.S_ISSOCK(os.fstat(fd).st_mode)


@state
def opath_living(place):
    """Names of living sockets, open with O_PATH in two tasks and twice, one by a link(2)."""
    server = listener(place / "name")
    with socket.socket(UNIX, socket.SOCK_DGRAM) as gone:
        gone.bind(str(place / "gone"))
    os.link(place / "name", place / "link")
    fds = [os.open(place / name, os.O_PATH) for name in ("name", "link", "gone")]
    again = os.dup(fds[0])
    asked, asks = os.pipe()

    def body():
        os.read(asked, 1)
        with socket.socket(UNIX) as one:
            one.connect(f"/proc/self/fd/{again}")

    pid = child(body)
    yield
    for fd, name in zip(fds, ("name", "link", "gone"), strict=True):
        assert os.readlink(f"/proc/self/fd/{fd}") == str(place / name)
        assert os.path.samestat(os.fstat(fd), os.stat(place / name))
    with socket.socket(UNIX) as one:
        one.connect(f"/proc/self/fd/{fds[1]}")
        server.accept()[0].close()
    os.write(asks, b"x")
    server.accept()[0].close()
    assert ended(pid) == 0


@state
def inherited(place):
    """A listener shared by children that accept, as a preforked server has it."""
    server = listener(place / "name")
    gone, told = os.pipe()

    def body():
        os.close(told)
        os.read(gone, 1)
        accepted, _ = server.accept()
        accepted.send(struct.pack("i", os.getpid()))

    pids = {child(body) for _ in range(3)}
    yield
    os.close(told)
    seen = set()
    for _ in pids:
        with socket.socket(UNIX) as client:
            client.connect(str(place / "name"))
            seen |= set(struct.unpack("i", client.recv(4)))
    assert seen == pids
    assert all(ended(pid) == 0 for pid in pids)


if __name__ == "__main__":
    chosen()

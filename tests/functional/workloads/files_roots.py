# SPDX-License-Identifier: Apache-2.0
"""Tasks with a root directory of their own."""

import os
import time

from files_base import await_file, child, chosen, ended, state


def inside(jail, body):
    """A child that changes its root, then does ``body`` when a byte comes through a pipe."""
    go, begin = os.pipe()

    def run():
        os.close(begin)
        os.chroot(jail)
        steps = body()
        next(steps)
        while not os.read(go, 1):
            time.sleep(0.01)
        next(steps, None)

    pid = child(run)
    os.close(go)
    return pid, begin


@state
def chroot(place):
    """Files inside and outside of the root, a working directory inside."""
    jail = place / "jail"
    (jail / "srv").mkdir(parents=True)
    (jail / "data").write_bytes(b"inside")
    (place / "data").write_bytes(b"outside")
    outer = os.open(place / "data", os.O_RDONLY)

    def body():
        os.chdir("/srv")
        inner = os.open("/data", os.O_RDONLY)
        gone = os.open("/srv/gone", os.O_RDWR | os.O_CREAT)
        os.unlink("/srv/gone")
        os.write(gone, b"gone")
        os.mknod("/set", 0o100600)
        yield
        assert os.getcwd() == "/srv"
        assert os.read(inner, 99) == b"inside"
        assert os.read(outer, 99) == b"outside"
        assert os.pread(gone, 9, 0) == b"gone"
        assert os.listdir("/") == ["srv", "data", "set"] or len(os.listdir("/")) == 3

    pid, begin = inside(jail, body)
    await_file(jail / "set")
    yield
    os.write(begin, b"x")
    assert ended(pid) == 0


@state
def removed_root(place):
    """The root directory is removed, and with it the working directory."""
    jail = place / "jail"
    jail.mkdir()

    def body():
        os.chdir("/")
        held = os.open("/", os.O_RDONLY)
        os.mknod("/set", 0o100600)
        yield
        assert os.listdir("/") == []
        assert os.path.samestat(os.stat("/"), os.stat("."))
        assert os.path.samestat(os.stat("/"), os.fstat(held))

    pid, begin = inside(jail, body)
    await_file(jail / "set")
    (jail / "set").unlink()
    jail.rmdir()
    yield
    os.write(begin, b"x")
    assert ended(pid) == 0


@state
def outside_root(place):
    """A working directory outside of the root."""
    jail = place / "jail"
    jail.mkdir()
    (place / "here").mkdir()

    def body():
        os.mknod("/set", 0o100600)
        yield
        assert os.listdir("/") == ["set"]
        assert os.listdir("..")[0]
        assert os.path.exists("../jail/set")

    os.chdir(place / "here")
    pid, begin = inside(jail, body)
    await_file(jail / "set")
    yield
    os.write(begin, b"x")
    assert ended(pid) == 0


if __name__ == "__main__":
    chosen()

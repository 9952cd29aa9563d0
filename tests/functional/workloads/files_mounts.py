# SPDX-License-Identifier: Apache-2.0
"""Tasks in a mount namespace of their own, and mounts over and below their files."""

import os

from files_base import LackingError, call, child, chosen, ended, state

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18


def mount(source, target, kind=None, flags=0, data=None):
    words = [os.fsencode(w) if w is not None else None for w in (source, target, kind)]
    call("mount", *words, flags, os.fsencode(data) if data else None)


def private():
    """A mount namespace whose mounts are seen nowhere else."""
    try:
        call("unshare", CLONE_NEWNS)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
    except OSError as error:
        raise LackingError("mount namespaces") from error


@state
def same_mounts(place):
    """A namespace of its own with the mounts of the host."""
    private()
    (place / "data").write_bytes(b"content")
    fd = os.open(place / "data", os.O_RDONLY)
    yield
    assert os.read(fd, 99) == b"content"


@state
def other_mounts(place):
    """A file below a mount that only this namespace has."""
    private()
    (place / "mnt").mkdir()
    mount("tmpfs", place / "mnt", "tmpfs")
    (place / "mnt" / "data").write_bytes(b"content")
    fd = os.open(place / "mnt" / "data", os.O_RDONLY)
    yield
    assert os.read(fd, 99) == b"content"


@state
def child_elsewhere(place):
    """A child has such a namespace, the rest of the tree does not."""
    (place / "mnt").mkdir()

    def body():
        private()
        mount("tmpfs", place / "mnt", "tmpfs")
        (place / "mnt" / "data").write_bytes(b"content")
        fd = os.open(place / "mnt" / "data", os.O_RDONLY)
        (place / "set").touch()
        while not (place / "child").exists():
            pass
        return 0 if os.read(fd, 99) == b"content" else 1

    pid = child(body)
    while not (place / "set").exists():
        pass
    yield
    (place / "child").touch()
    assert ended(pid) == 0


if __name__ == "__main__":
    chosen()

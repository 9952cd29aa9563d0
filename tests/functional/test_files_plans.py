# SPDX-License-Identifier: Apache-2.0
"""Kinds of files against the kernel, in one process: make, dump, close, restore, compare."""

import fcntl
import os
import struct
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import inprocess
from inprocess import forked, round_trip

from torpor.engine.files import regular


def folder():
    return tempfile.mkdtemp(prefix="torpor-files-")


def test_regular_files_directories_and_paths():
    def body():
        base = Path(folder())
        (base / "data").write_bytes(b"0123456789")
        (base / "sub").mkdir()
        for i in range(20):
            (base / "sub" / f"file{i}").touch()
        os.symlink("data", base / "link")
        read = os.open(base / "data", os.O_RDONLY)
        os.lseek(read, 4, os.SEEK_SET)
        again = os.open(base / "data", os.O_RDONLY)
        append = os.open(base / "data", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
        os.write(append, b"ab")
        sub = os.open(base / "sub", os.O_RDONLY | os.O_DIRECTORY)
        scan = os.listdir(sub)
        path = os.open(base / "link", os.O_PATH | os.O_NOFOLLOW)
        shared = os.dup(read)
        os.set_inheritable(shared, True)
        fds = [read, again, append, sub, path, shared]
        before, after, result = round_trip([regular.KIND], fds)
        assert before == after
        assert len(result.views) == 5
        assert os.read(shared, 3) == b"456"
        assert os.read(read, 3) == b"789"
        assert os.read(again, 3) == b"012"
        assert sorted(os.listdir(sub)) == sorted(scan)
        assert os.readlink("", dir_fd=path) == "data"
        assert not os.get_inheritable(read)
        assert os.get_inheritable(shared)

    forked(body)


@pytest.mark.parametrize("is_taken", [False, True])
def test_unlinked_file(is_taken):
    def body():
        base = Path(folder())
        write = os.open(base / "gone", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        read = os.open(base / "gone", os.O_RDONLY)
        os.write(write, b"x" * 5000)
        os.ftruncate(write, 1 << 20)
        os.pwrite(read, b"", 0) if False else None
        os.lseek(read, 10, os.SEEK_SET)
        os.unlink(base / "gone")
        if is_taken:
            (base / "gone").write_text("another")
        before, after, _ = round_trip([regular.KIND], [write, read])
        if is_taken:
            assert after[read].pop("link").endswith("/.torpor-ghost-1 (deleted)")
            after[write].pop("link"), before[write].pop("link"), before[read].pop("link")
            assert (base / "gone").read_text() == "another"
            assert sorted(os.listdir(base)) == ["gone"]
        else:
            assert os.listdir(base) == []
        assert before == after
        assert os.fstat(read).st_nlink == 0
        assert os.fstat(read).st_ino == os.fstat(write).st_ino
        assert os.pread(read, 1 << 21, 0) == b"x" * 5000 + bytes((1 << 20) - 5000)
        os.write(write, b"end")
        assert os.pread(read, 10, 1 << 20) == b"end"

    forked(body)


def test_unlinked_with_its_directories():
    def body():
        base = Path(folder())
        (base / "a" / "b").mkdir(parents=True)
        fd = os.open(base / "a" / "b" / "file", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"content")
        gone = os.open(base / "a" / "b", os.O_RDONLY)
        os.unlink(base / "a" / "b" / "file")
        os.rmdir(base / "a" / "b")
        os.rmdir(base / "a")
        before, after, _ = round_trip([regular.KIND], [fd, gone])
        assert before == after
        assert os.listdir(base) == []
        assert os.pread(fd, 10, 0) == b"content"

    forked(body)


def test_tmpfile_can_still_be_linked():
    def body():
        base = folder()
        fd = os.open(base, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"text")
        before, after, _ = round_trip([regular.KIND], [fd])
        assert before[fd]["info"] == after[fd]["info"]
        assert before[fd]["mode"] == after[fd]["mode"]
        name = f"/proc/self/fd/{fd}".encode()
        assert inprocess.LIBC.linkat(-100, name, -100, f"{base}/named".encode(), 0x400) == 0
        assert Path(base, "named").read_text() == "text"

    forked(body)


def test_locks():
    def body():
        base = Path(folder())
        whole = os.open(base / "whole", os.O_RDWR | os.O_CREAT)
        fcntl.flock(whole, fcntl.LOCK_EX)
        part = os.open(base / "part", os.O_RDWR | os.O_CREAT)
        fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)
        fcntl.lockf(part, fcntl.LOCK_SH, 7, 100)
        own = os.open(base / "own", os.O_RDWR | os.O_CREAT)
        fcntl.fcntl(own, 37, struct.pack("<hhxxxxqqixxxx", 1, 0, 3, 4, 0))
        before, after, _ = round_trip([regular.KIND], [whole, part, own])

        def lines(shown, fd):
            return sorted(line.split(None, 2)[2] for line in shown[fd]["info"] if "lock:" in line)

        for fd in (whole, part, own):
            assert lines(before, fd)
            assert lines(before, fd) == lines(after, fd)

    forked(body)

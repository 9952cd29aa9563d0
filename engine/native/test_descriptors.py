# SPDX-License-Identifier: Apache-2.0
"""Looking at many descriptors at once: as one by one, whatever the room and the threads."""

import errno
import os

import pytest

from torpor.engine import native
from torpor.engine.errors import Vanished
from torpor.engine.native import descriptors


@pytest.fixture
def opened(tmp_path):
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    fds = []
    for i in range(150):
        fds.append(os.open(deep / f"file {i}", os.O_CREAT | os.O_RDWR))
        os.write(fds[-1], bytes(i))
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("many", [1, 10_000])
@pytest.mark.parametrize("room", [1, 64 << 10])
def test_all_is_told(opened, monkeypatch, many, room):
    monkeypatch.setattr(descriptors, "MANY", many)
    monkeypatch.setattr(descriptors, "ROOM", room)
    monkeypatch.setattr(descriptors, "TYPICAL", 1)
    found = native.look_fds(os.getpid(), opened)
    for i, (fd, look) in enumerate(zip(opened, found, strict=True)):
        status = os.fstat(fd)
        assert look.link == os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        assert look.info.startswith(f"pos:\t{i}\nflags:\t".encode())
        assert look.info.endswith(b"\n")
        assert look.error == 0
        names = (
            "st_mode",
            "st_dev",
            "st_ino",
            "st_rdev",
            "st_size",
            "st_nlink",
            "st_uid",
            "st_blksize",
        )
        assert [getattr(look, n) for n in names] == [getattr(status, n) for n in names]


def test_a_number_that_is_not_open(opened):
    first, gone = native.look_fds(os.getpid(), [opened[0], 999_999])
    assert first.error == 0
    assert (gone.link, gone.info, gone.error) == (-errno.ENOENT,) * 3
    assert native.look_fds(os.getpid(), []) == []


def test_a_task_that_is_not_there():
    with pytest.raises(Vanished):
        native.look_fds(1 << 30, [0])

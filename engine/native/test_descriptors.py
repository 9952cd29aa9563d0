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
    found = native.look_fds(os.getpid(), opened).all()
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
    first, gone = native.look_fds(os.getpid(), [opened[0], 999_999]).all()
    assert first.error == 0
    assert (gone.link, gone.info, gone.error) == (-errno.ENOENT,) * 3
    assert native.look_fds(os.getpid(), []).all() == []


def test_a_task_that_is_not_there():
    with pytest.raises(Vanished):
        native.look_fds(1 << 30, [0])


def test_what_is_as_it_was(opened):
    """Position, size, mode and link of one each are changed, and one is closed and opened anew."""
    before = native.look_fds(os.getpid(), opened)
    assert not any(before.same())
    changed = {opened[3], opened[140], opened[7], opened[9]}
    os.lseek(opened[3], 1, os.SEEK_SET)
    os.write(opened[140], b"more")
    os.fchmod(opened[7], 0o711)
    path = os.readlink(f"/proc/self/fd/{opened[9]}")
    os.rename(path, path + "x")
    fresh = os.open("/dev/null", os.O_RDONLY)
    numbers = sorted([*opened[:100], *opened[101:], fresh])
    after = native.look_fds(os.getpid(), numbers, before)
    os.close(fresh)
    different = {fd for fd, same in zip(numbers, after.same(), strict=True) if not same}
    assert different == changed | {fresh}
    assert [after.at(i) for i in range(len(numbers))] == after.all()

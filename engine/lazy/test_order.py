# SPDX-License-Identifier: Apache-2.0
"""The order of faults, kept in a directory."""

import os

import pytest

from torpor.engine.lazy import order


@pytest.fixture
def directory(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_kept_and_replaced(directory):
    assert order.recorded(directory, 7) == []
    order.record(directory, 7, [4096, 0, 4096, 8192])
    assert order.recorded(directory, 7) == [4096, 0, 8192]
    order.record(directory, 7, [1 << 40])
    assert order.recorded(directory, 7) == [1 << 40]
    assert os.listdir(directory) == ["torpor-faults-7"]


def test_cut_short_and_no_file(directory, tmp_path):
    (tmp_path / "torpor-faults-7").write_bytes(b"\x01" + bytes(10))
    assert order.recorded(directory, 7) == [1]
    (tmp_path / "torpor-faults-8").symlink_to("torpor-faults-7")
    assert order.recorded(directory, 8) == []


def test_no_more_than_so_many(directory):
    order.record(directory, 7, range(order.MOST + 10))
    assert len(order.recorded(directory, 7)) == order.MOST

# SPDX-License-Identifier: Apache-2.0
"""Room below limits."""

import pytest

from torpor.engine.kernel import room


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, room.UNLIMITED),
        (
            {"memory.max": "1000", "memory.current": "900", "memory.stat": "file 400\nshmem 100\n"},
            400,
        ),
        (
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "900",
                "memory.stat": "cache 50\n",
            },
            150,
        ),
        ({}, room.UNLIMITED),
    ],
)
def test_room_below_a_limit(tmp_path, files, left):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert room._memory_below(tmp_path) == left


def test_room_is_a_number_of_this_machine():
    assert 0 < room.memory_room() < 1 << 50
    assert room.task_room(1) > 0


def test_tasks_below_a_limit(tmp_path):
    assert room._tasks_below(tmp_path) == room.UNLIMITED
    (tmp_path / "pids.current").write_text("7\n")
    (tmp_path / "pids.max").write_text("max\n")
    assert room._tasks_below(tmp_path) == room.UNLIMITED
    (tmp_path / "pids.max").write_text("10\n")
    assert room._tasks_below(tmp_path) == 3


def test_given_directories_are_looked_at_for_each_controller(tmp_path):
    freezer, pids = tmp_path / "freezer" / "a", tmp_path / "pids" / "a"
    freezer.mkdir(parents=True)
    pids.mkdir(parents=True)
    (pids / "pids.current").write_text("1\n")
    (pids / "pids.max").write_text("3\n")
    assert room.task_room(1, [freezer]) == 2


def test_a_group_that_dies_together(tmp_path):
    (tmp_path / "memory.oom.group").write_text("1\n")
    assert room.dies_together(1, [tmp_path])

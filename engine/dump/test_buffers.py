# SPDX-License-Identifier: Apache-2.0
"""Room for captured memory: never more than there is."""

import pytest

from torpor.engine.dump import buffers


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, buffers.UNLIMITED),
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
        ({}, buffers.UNLIMITED),
    ],
)
def test_room_below_a_limit(tmp_path, files, room):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert buffers._cgroup_room(tmp_path) == room


def test_no_more_than_is_available_is_prepared(monkeypatch):
    monkeypatch.setattr(buffers, "available_bytes", lambda: buffers.RESERVE + (6 << 20))
    with buffers.Capture() as capture:
        capture.prepare(100 << 20)
        assert capture._buffers[0].size == 6 << 20


def test_available_is_a_number_of_this_machine():
    assert 0 < buffers.available_bytes() < 1 << 50

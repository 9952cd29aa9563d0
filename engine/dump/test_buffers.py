# SPDX-License-Identifier: Apache-2.0
"""Room for captured memory: never more than there is."""

from torpor.engine.dump import buffers


def test_no_more_than_is_available_is_prepared(monkeypatch):
    monkeypatch.setattr(buffers, "memory_room", lambda: buffers.RESERVE + (6 << 20))
    with buffers.Capture() as capture:
        capture.prepare(100 << 20)
        assert capture._buffers[0].size == 6 << 20

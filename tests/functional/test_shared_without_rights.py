# SPDX-License-Identifier: Apache-2.0
"""Shared anonymous memory where nobody may open map_files: it comes back as a memfd, as CRIU's."""

from dataclasses import replace

import pytest

from torpor.engine.program.ops import Data, Program
from torpor.engine.restore import backings

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.fixture
def no_map_files(monkeypatch):
    """The root's open fails, as it does without CAP_CHECKPOINT_RESTORE."""
    plan = backings._anonymous

    def failing(*arguments):
        ops = [
            replace(op, args=(op.args[0], Data.path("/proc/self/map_files/0-1"), *op.args[2:]))
            if op.call == "openat"
            else op
            for op in plan(*arguments).ops
        ]
        return Program("shared memory", ops)

    monkeypatch.setattr(backings, "_anonymous", failing)


@pytest.mark.parametrize("shape", ["holes", "swapped", "siblings", "cousins", "protected"])
def test_twice_and_back(no_map_files, start, shape):
    live = start("memory_shared", shape)
    live.await_ready()
    for images in ("first", "second"):
        live.dump(images)
        live.restore(images)
        assert any("/memfd:/dev/zero" in text for text in live.look().values())
    assert live.verdict() == "ok"


def test_and_with_rights_again(monkeypatch, start, request):
    live = start("memory_shared", "siblings")
    live.await_ready()
    before = live.look()
    with monkeypatch.context():
        request.getfixturevalue("no_map_files")
        live.dump("first")
        live.restore("first")
    monkeypatch.undo()
    live.dump("second")
    live.restore("second")
    live.same_as(before)
    assert live.verdict() == "ok"

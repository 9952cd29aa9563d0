# SPDX-License-Identifier: Apache-2.0
"""Two processes with one memory are refused before anything is stopped or made to call."""

import pytest

from torpor.engine import api
from torpor.engine.dump import pipeline
from torpor.engine.dump.ways import choice
from torpor.engine.errors import Refused
from torpor.engine.options import After, DumpOptions, MemoryWay

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.mark.parametrize("mode", ["clone_vm", "vfork"])
def test_refused_before_harm(start, monkeypatch, mode):
    live = start("tasks_refused", mode)
    live.await_ready()
    before = live.look()
    told = api.plan_dump(DumpOptions(pid=live.pid, images_dir=live.folder / "none"))
    assert told.count("shares its whole memory") == 1, told

    def never(*_, **__):
        raise AssertionError("tasks were touched")

    monkeypatch.setattr(pipeline, "stopped", never)
    monkeypatch.setattr(choice, "ready", never)
    for number, way in enumerate((MemoryWay.AUTO, MemoryWay.PRECOPY)):
        with pytest.raises(Refused, match="shares its whole memory"):
            live.dump(f"images-{number}", After.CONTINUE, memory=way)
    live.same_as(before)
    assert live.verdict() == "ok"

# SPDX-License-Identifier: Apache-2.0
"""System V objects of a container's own ipc namespace are not lost silently."""

import time
from pathlib import Path

import pytest

from tests.functional.harness import Live
from torpor.engine.errors import Findings
from torpor.engine.options import After

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.fixture
def inside(tmp_path):
    begun = []

    def begin(script):
        command = f"{script} > {tmp_path}/made && touch {tmp_path}/ready; exec sleep 1000"
        live = Live(tmp_path, ["unshare", "--ipc", "sh", "-c", command])
        begun.append(live)
        live.await_file("ready")
        while Path(f"/proc/{live.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        live.settle()
        return live

    yield begin
    for live in begun:
        live.end()


@pytest.mark.parametrize(
    ("script", "told"),
    [("ipcmk -S 3", "1 sets of semaphores"), ("ipcmk -Q && ipcmk -Q", "2 message queues")],
)
def test_objects_are_refused_by_name(inside, script, told):
    live = inside(script)
    with pytest.raises(Findings, match="ipc namespace") as error:
        live.dump(container=True)
    assert told in error.value.cause
    live.unharmed()


def test_a_namespace_without_any_is_taken(inside):
    live = inside("true")
    live.dump("first", After.CONTINUE, container=True)
    live.unharmed()

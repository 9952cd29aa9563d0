# SPDX-License-Identifier: Apache-2.0
"""System V objects of a container's own ipc namespace are not lost silently."""

import json
import subprocess
import sys
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


def test_the_first_segment_of_a_namespace_has_the_id_0(tmp_path):
    """And the inode 0, as memory without a file has it."""
    command = ["unshare", "--ipc", sys.executable, "-m", "tests.functional.ipcrun", tmp_path]
    done = subprocess.run([*command, "core_sysv"], check=True, capture_output=True, text=True)
    assert done.stdout == "ok\n"
    segments = json.loads((tmp_path / "images" / "torpor.json").read_text())
    assert "'shm_id': 0" in str(segments)

# SPDX-License-Identifier: Apache-2.0
"""Small settings of a task: set by a workload, read back by it after the restore."""

import json
import os

import pytest

from tests.functional.state_round import WORKLOADS, Round
from torpor.engine.errors import Findings

pytestmark = [pytest.mark.functional, pytest.mark.root]
PROGRAM = WORKLOADS / "task_state.py"


def cases():
    text = PROGRAM.read_text()
    names = [line.split('"')[1] for line in text.partition("CASES = {")[2].splitlines()
             if line.startswith('    "')]  # fmt: skip
    assert len(names) > 20
    return names


@pytest.fixture
def started(tmp_path, request):
    one = Round(tmp_path, str(PROGRAM), request.param, str(tmp_path))
    yield one
    one.end()


@pytest.mark.parametrize("started", cases(), indirect=True)
def test_reads_the_same_after_the_restore(started):
    before = json.loads(started.wait_for("before.json").read_text())
    images = started.dump()
    started.restore(images)
    (started.folder / "ask").touch()
    assert started.wait() == 0, started.log()
    after = json.loads((started.folder / "after.json").read_text())
    assert after == before
    assert started.warnings == ()


def test_a_terminal_of_the_user_is_refused_and_the_task_runs_on(tmp_path):
    master, slave = os.openpty()
    one = Round(tmp_path, str(PROGRAM), "plain", str(tmp_path), stdin=slave)
    try:
        before = json.loads(one.wait_for("before.json").read_text())
        with pytest.raises(Findings, match="terminal") as error:
            one.dump()
        assert "fd 0" in error.value.subject
        assert "setsid" in error.value.remedy
        (tmp_path / "ask").touch()
        assert one.wait() == 0, one.log()
        assert json.loads((tmp_path / "after.json").read_text()) == before
    finally:
        one.end()
        os.close(master)
        os.close(slave)

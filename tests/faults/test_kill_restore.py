# SPDX-License-Identifier: Apache-2.0
"""The engine is killed at any instant of a restore, and nothing of the tree is left.

Until the last moment a tree that is being restored dies with its engine; after it, the tree runs.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.conftest import reap
from tests.faults.leftovers import begin, found, same
from tests.functional.catalogue.every import CASES
from torpor.engine import api
from torpor.engine.errors import Error
from torpor.engine.options import RestoreOptions

pytestmark = [pytest.mark.faults, pytest.mark.root]

KILLS, SEED = 20, 5
WORKLOADS = ("core_tree", "core_threads", "core_shared", "files_locks mixed", "tasks_tree orphans")
BY_NAME = {case.name: case for case in CASES}
DONE, FAILED = 0, 3


def engine(images):
    """A process that restores."""
    pid = os.fork()
    if pid:
        return pid
    status = FAILED
    try:
        api.restore(RestoreOptions(images_dir=images))
        status = DONE
    except Error as error:
        (images.parent / "told").write_text(str(error))
    finally:
        os._exit(status)


def killed_after(images, delay_s):
    """Whether it was still at work; None when a pid was taken by somebody else."""
    pid = engine(images)
    time.sleep(delay_s)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FAILED:
        told = (images.parent / "told").read_text()
        assert "pid" in told, told
        return None
    return os.WIFSIGNALED(status)


def seconds_of(images):
    """How long a restore takes that nobody disturbs."""
    begin_s = time.monotonic()
    _, status = os.waitpid(engine(images), 0)
    assert status == DONE, (images.parent / "told").read_text()
    return time.monotonic() - begin_s


def gone(live):
    """Every task of it, without help."""
    deadline = time.monotonic() + 10
    while left := [pid for pid in live.pids if Path(f"/proc/{pid}").exists()]:
        reap()
        assert time.monotonic() < deadline, f"left by an engine that was killed: {told_of(left)}"
        time.sleep(0.002)


def told_of(pids):
    """What they are and do."""
    return {pid: Path(f"/proc/{pid}/status").read_text()[:400] for pid in pids}


def end_running(live):
    """It came back whole before the engine was killed."""
    for pid in live.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    gone(live)


def has_come_back(live):
    """Whether the root runs, as nobody's tracee: the engine had let it go."""
    with suppress(OSError):
        text = Path(f"/proc/{live.pid}/status").read_text()
        return "TracerPid:\t0" in text and "torpor" not in text.split("\n", 1)[0]
    return False


@pytest.mark.parametrize("name", WORKLOADS)
def test_killed_at_any_instant(tmp_path, name):
    case = BY_NAME[name]
    live = begin(tmp_path, case)
    try:
        images = live.dump(words=case.options)
        before = found(live)
        whole_s = seconds_of(images)
        end_running(live)
        chance, killed = Random(SEED), 0
        for _ in range(3 * KILLS):
            if killed == KILLS:
                break
            at_work = killed_after(images, chance.uniform(0, whole_s))
            killed += bool(at_work)
            if at_work is False or has_come_back(live):
                end_running(live)
            else:
                gone(live)
            (tmp_path / "told").unlink(missing_ok=True)
            same(live, before, f"kill {killed}")
        assert killed > KILLS // 2
        live.restore()
        assert live.verdict() == "ok"
    finally:
        live.end()

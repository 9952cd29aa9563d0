# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the engine at any moment of a dump: the workload does not notice."""

import os
import random
import shutil
import signal
import statistics
import struct
import time

import pytest

from tests.functional.conftest import start  # noqa: F401 (a fixture)
from tests.functional.describe import differences, stopped
from torpor.engine import api
from torpor.engine.options import After, DumpOptions

pytestmark = [pytest.mark.faults, pytest.mark.root]

INSTANTS = 200
TASKS = 4
PATIENCE_S = 5.0


def ticks(live):
    return struct.unpack_from(f"<{TASKS}Q", (live.folder / "ticks").read_bytes())


def dump(live, images):
    """A process that dumps the tree; it ends with the exit status of the dump."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        api.dump([DumpOptions(pid=live.pid, images_dir=images, after=After.CONTINUE)])
        status = 0
    finally:
        os._exit(status)


def duration_s(live):
    """How long a whole dump takes; a slow disk makes some of them much longer."""
    took = []
    for number in range(9):
        begin = time.perf_counter()
        _, status = os.waitpid(dump(live, live.folder / f"whole-{number}"), 0)
        assert status == 0
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def eventually(probe, wanted, what):
    deadline = time.monotonic() + PATIENCE_S
    while (got := probe()) != wanted:
        assert time.monotonic() < deadline, f"{what}: {got}"
        time.sleep(0.005)


def unharmed(live, before, when):
    eventually(lambda: stopped(live.pid), {}, f"stopped or traced {when}")
    eventually(lambda: differences(before, live.look()), "", f"not as before {when}")
    counted = ticks(live)
    eventually(
        lambda: all(new > old for new, old in zip(ticks(live), counted, strict=True)),
        True, f"some task no longer ticks {when}",
    )  # fmt: skip
    result = live.folder / "result"
    assert not result.exists(), f"{when}: {result.read_text()}"


def test_at_any_instant(start):  # noqa: F811
    live = start("core_four")
    live._await_file("ready")
    eventually(lambda: all(ticks(live)), True, "not all tick")
    before = live.look()
    usual = duration_s(live)
    unharmed(live, before, "after whole dumps")
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    whole = killed = 0
    for number in range(INSTANTS):
        delay, images = chance.uniform(0, usual), live.folder / f"images-{number}"
        engine = dump(live, images)
        time.sleep(delay)
        os.kill(engine, signal.SIGKILL)
        _, status = os.waitpid(engine, 0)
        whole, killed = whole + (status == 0), killed + (status != 0)
        when = f"killed after {delay * 1000:.3f} ms (instant {number} of seed {seed})"
        unharmed(live, before, when)
        if status != 0 and images.exists():  # it was renamed: then it is whole
            assert (images / "inventory.img").exists(), when
        for left in live.folder.glob("*images-*"):
            shutil.rmtree(left)
    assert killed > INSTANTS / 3, f"{whole} of {INSTANTS} dumps were whole before they were killed"

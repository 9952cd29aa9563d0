# SPDX-License-Identifier: Apache-2.0
"""Clocks that count from the boot of a machine go on in a restored tree, whatever the machine."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.functional.conftest import program
from tests.functional.harness import Live
from torpor.engine.errors import Denied
from torpor.engine.kernel import clocks
from torpor.engine.kernel.clocks import SECOND_NS, Clocks
from torpor.engine.options import After, ClockPolicy

pytestmark = [pytest.mark.functional, pytest.mark.root]
AHEAD_S = 1_000_000
OTHER_BOOT = ("unshare", "--time", "--monotonic", str(AHEAD_S), "--boottime", str(AHEAD_S))
"""What runs so lives by the clocks of a machine that has been up for longer."""


@pytest.fixture
def begin(tmp_path):
    begun = []

    def one(*before):
        live = Live(tmp_path, [*before, *program("tasks_clocks"), str(tmp_path), "goes_on"])
        begun.append(live)
        live.await_ready()
        return live

    yield one
    for live in begun:
        live.end()


def told(live):
    assert live.verdict() == "ok"
    return Clocks(*(int(word) for word in (live.folder / "clocks").read_text().split()))


@pytest.mark.parametrize("before", [(), OTHER_BOOT], ids=["here", "of another boot"])
def test_no_time_passes_while_it_is_away(begin, before):
    live = begin(*before)
    first, offset = time.monotonic_ns(), clocks.offsets(live.pid).monotonic_ns
    live.dump()
    dumped = time.monotonic_ns()
    time.sleep(1)
    begun = time.monotonic_ns()
    report = live.restore(clocks=ClockPolicy.CONTINUE)
    assert not any("CLOCK" in text for text in report.warnings)
    now = clocks.offsets(live.pid).monotonic_ns - offset
    assert first - time.monotonic_ns() <= now <= dumped - begun <= -SECOND_NS
    here = clocks.now(clocks.ahead(live.pid))
    there = told(live)
    assert there.monotonic_ns >= here.monotonic_ns
    assert there.boottime_ns >= here.boottime_ns


def test_again_and_again(begin):
    live = begin(*OTHER_BOOT)
    for images in ("first", "second", "third"):
        live.dump(images)
        live.restore(images)
        assert clocks.offsets(live.pid).monotonic_ns > (AHEAD_S - 1000) * SECOND_NS
    assert told(live).monotonic_ns > AHEAD_S * SECOND_NS


def test_runs_on_after_a_dump(begin):
    live = begin(*OTHER_BOOT)
    own = Path(f"/proc/{live.pid}/ns/time").readlink()
    live.dump(after=After.CONTINUE)
    assert Path(f"/proc/{live.pid}/ns/time").readlink() == own
    assert told(live).monotonic_ns > AHEAD_S * SECOND_NS


def test_by_the_clocks_of_this_machine(begin):
    live = begin(*OTHER_BOOT)
    live.dump()
    report = live.restore(clocks=ClockPolicy.MACHINE)
    assert any(f"jumps by -{AHEAD_S // 10**6}" in text for text in report.warnings)
    ours, its = (Path(f"/proc/{pid}/ns/time").readlink() for pid in ("self", live.pid))
    assert its == ours


@pytest.mark.parametrize("lacking", ["sys_time", "sys_admin"])
def test_without_the_rights(begin, lacking):
    """It is told of a jump, or fails where it must not jump; then nothing is left."""
    without = ("setpriv", f"--bounding-set=-{lacking}", f"--inh-caps=-{lacking}")
    live = begin(*OTHER_BOOT, *without)
    images = live.dump()
    words = [
        *without,
        sys.executable,
        "-m",
        "torpor.engine.cli",
        "restore",
        "-D",
        str(images),
        "-d",
    ]

    def run(*more):
        return subprocess.run([*words, *more], capture_output=True, check=False, text=True)

    failed = run("--clocks", "continue")
    assert failed.returncode != 0
    assert "the clocks of the tree cannot go on" in failed.stderr
    assert "--clocks machine" in failed.stderr
    assert not Path(f"/proc/{live.pid}").exists()
    done = run()
    assert done.returncode == 0, done.stderr
    assert "CLOCK_MONOTONIC jumps by -1" in done.stdout + done.stderr


def test_in_a_time_namespace_that_is_there(begin, tmp_path):
    """As --join-ns time:PID does; with what is no such namespace nothing is left."""
    live = begin()
    live.dump()
    holder = subprocess.Popen([*OTHER_BOOT, "sleep", "1000"])
    try:
        ours, its = Path("/proc/self/ns/time"), Path(f"/proc/{holder.pid}/ns/time")
        while its.readlink() == ours.readlink():
            time.sleep(0.01)
        with pytest.raises(Denied, match="cannot enter the time namespace"):
            live.restore(words=["--join-ns", "time:/proc/self/ns/net"])
        assert not Path(f"/proc/{live.pid}").exists()
        live.restore(words=["--join-ns", f"time:{holder.pid}"])
        assert Path(f"/proc/{live.pid}/ns/time").readlink() == its.readlink()
        assert told(live).monotonic_ns > AHEAD_S * SECOND_NS
    finally:
        holder.kill()
        holder.wait()


def test_images_that_do_not_tell(begin):
    live = begin()
    images = live.dump()
    (images / "timens-0.img").unlink()
    (images / "torpor.json").unlink()
    with pytest.raises(Denied, match="the images do not tell them"):
        live.restore(clocks=ClockPolicy.CONTINUE)
    live.restore()
    assert live.verdict() == "ok"

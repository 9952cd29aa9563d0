# SPDX-License-Identifier: Apache-2.0
"""Pre-dumps and dumps that leave out what an earlier one has, by the criu command."""

import subprocess
import sys

import pytest

from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.stats import read_stats

pytestmark = [pytest.mark.functional, pytest.mark.root]
OURS = (sys.executable, "-m", "torpor.engine.criu")


def criu(live, command, name, *words, program=OURS, status=0):
    (live.folder / name).mkdir(exist_ok=True)
    done = subprocess.run(
        [*program, command, "-D", name, "-o", f"{command}.log", "-v4", *words],
        cwd=live.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    log = live.folder / name / f"{command}.log"
    assert done.returncode == status, log.read_text() if log.exists() else done.stderr
    return done


def copy(live, name, parent="", command="pre-dump", words=()):
    """A step of a chain; pages that were left out."""
    earlier = ["--prev-images-dir", f"../{parent}"] if parent else []
    criu(live, command, name, "-t", str(live.pid), "--track-mem", *earlier, *words)
    return read_stats(live.folder / name, "stats-dump").dump


@pytest.mark.parametrize("program", ["tasks_strict", "core_seccomp"])
def test_a_filtered_task_is_not_ended_by_a_pre_dump(start, program):
    live = start(program)
    live.await_ready()
    copy(live, "first")
    copy(live, "second", "first", "dump")
    live.reap(live.pids)
    restored(live, "second")


def step(live, number):
    (live.folder / f"step{number}").touch()
    live.await_file(f"done{number}")
    live.mark()


def grow(live, *, last="dump", words=()):
    """Two pre-dumps and a dump of a tree that changes meanwhile, in directories 0, 1 and 2."""
    live.await_ready()
    first = copy(live, "0")
    step(live, 1)
    second = copy(live, "1", "0")
    step(live, 2)
    step(live, 3)
    third = copy(live, "2", "1", last, words)
    assert first.pages_skipped_parent == 0
    for later in (second, third):
        assert later.pages_skipped_parent > later.pages_scanned // 3
        assert later.pages_written > 0
    return third


def restored(live, name="2", program=OURS, words=()):
    criu(live, "restore", name, "-d", *words, program=program)
    assert live.verdict() == "ok"


def test_a_chain_is_restored(start):
    live = start("cli_memory")
    grow(live)
    live.reap(live.pids)
    restored(live)


def test_pre_dumps_change_nothing(start):
    live = start("cli_memory")
    live.await_ready()
    before = live.look()
    copy(live, "0")
    live.same_as(before)
    copy(live, "1", "0")
    live.same_as(before)
    assert live.verdict() == "ok"


def test_a_chain_of_dumps_that_leave_it_running(start):
    live = start("cli_memory")
    grow(live, words=("-R",))
    live.unharmed()
    copy(live, "3", "2", "dump")
    live.reap(live.pids)
    restored(live, "3")


@pytest.mark.parametrize("how", ["command", "option"])
def test_pages_are_taken_from_the_earlier_dumps(start, how):
    live = start("cli_memory")
    grow(live, words=("--auto-dedup",) if how == "option" else ())
    if how == "command":
        criu(live, "dedup", "2")
    live.reap(live.pids)
    pages = live.folder / "0" / "pages-1.img"
    assert pages.stat().st_blocks * 512 < pages.stat().st_size
    ImageDirectory.open(live.folder / "0").close()
    restored(live, words=("--auto-dedup",))
    assert (live.folder / "2" / "pages-1.img").stat().st_blocks == 0


def test_a_chain_that_is_broken_is_refused(start):
    live = start("cli_memory")
    grow(live)
    live.reap(live.pids)
    (live.folder / "0").rename(live.folder / "moved")
    criu(live, "restore", "2", "-d", status=1)
    assert "0" in (live.folder / "2" / "restore.log").read_text()
    (live.folder / "moved").rename(live.folder / "0")
    restored(live)


def test_a_pre_dump_alone_is_not_restored(start):
    live = start("cli_memory")
    live.await_ready()
    copy(live, "0")
    criu(live, "restore", "0", "-d", status=1)
    assert live.verdict() == "ok"


def test_a_parent_that_is_not_there_is_refused_before_harm(start):
    live = start("cli_memory")
    live.await_ready()
    words = ("-t", str(live.pid), "--prev-images-dir", "../none")
    criu(live, "dump", "0", *words, status=1)
    live.unharmed()
    assert live.verdict() == "ok"

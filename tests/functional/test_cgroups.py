# SPDX-License-Identifier: Apache-2.0
"""A tree goes back to its control groups, as --manage-cgroups says."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from torpor.engine.errors import Refused

pytestmark = [pytest.mark.functional, pytest.mark.root]
HIERARCHIES = [Path("/sys/fs/cgroup") / name for name in ("freezer", "pids", "unified")]
NAME = f"moved-{os.getpid()}"


def remove():
    """Take the groups away; a task that has been waited for may still leave one for a moment."""
    deadline = time.monotonic() + 5
    while True:
        left = [
            one
            for place in HIERARCHIES
            for one in (place / NAME / "inner", place / NAME, place / f"{NAME}-new")
            if one.exists()
        ]
        if not left:
            return
        assert time.monotonic() < deadline, left
        for one in left:
            with contextlib.suppress(OSError):
                one.rmdir()
        time.sleep(0.005)


@pytest.fixture
def live(start):
    if not all((place / "cgroup.procs").exists() for place in HIERARCHIES):
        pytest.skip("this machine lacks the hierarchies freezer, pids and unified")
    live = start("cli_memory")
    live.await_ready()
    for place in HIERARCHIES:
        (place / NAME / "inner").mkdir(parents=True)
        (place / NAME / "inner" / "cgroup.procs").write_text(str(live.pid))
    (HIERARCHIES[1] / NAME / "inner" / "pids.max").write_text("77")
    yield live
    live.end()
    remove()


def where(live):
    return sorted(
        line.partition(":")[2]
        for line in Path(f"/proc/{live.pid}/cgroup").read_text().splitlines()
        if NAME in line
    )


@pytest.mark.parametrize("mode", ["", "soft", "full", "none", "props"])
def test_the_groups_are_there(live, mode):
    before = where(live)
    live.dump()
    live.restore(words=("--manage-cgroups=" + mode,) if mode else ())
    assert where(live) == before
    assert len(before) == len(HIERARCHIES)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("mode", ["soft", "full", "strict"])
def test_groups_are_made_with_their_settings(live, mode):
    before = where(live)
    live.dump()
    remove()
    live.restore(words=(f"--manage-cgroups={mode}",))
    assert where(live) == before
    assert (HIERARCHIES[1] / NAME / "inner" / "pids.max").read_text() == "77\n"


def test_groups_without_tasks_and_owners_come_back(live):
    below = HIERARCHIES[1] / NAME / "inner" / "below"
    below.mkdir()
    (below / "pids.max").write_text("5")
    os.chown(below / "cgroup.procs", 1000, 1000)
    live.dump()
    below.rmdir()
    remove()
    live.restore()
    assert (below / "pids.max").read_text() == "5\n"
    assert ((below / "cgroup.procs").stat().st_uid, below.stat().st_uid) == (1000, 0)
    below.rmdir()


def test_settings_that_were_asked_for(live):
    text = '"{}":\n - "strategy": "{}"\n - "properties": ["notify_on_release"]\n'
    words = text.format("pids", "replace") + text.format("freezer", "merge")
    live.dump(words=("--cgroup-props", words))
    remove()
    live.restore()
    assert (HIERARCHIES[1] / NAME / "inner" / "pids.max").read_text() == "max\n"


@pytest.mark.parametrize("mode", ["none", "props"])
def test_groups_that_must_be_there(live, mode):
    live.dump()
    remove()
    with pytest.raises(Refused, match="is not there"):
        live.restore(words=(f"--manage-cgroups={mode}",))
    assert not any((place / NAME).exists() for place in HIERARCHIES)


def test_groups_that_must_not_be_there(live):
    live.dump()
    with pytest.raises(Refused, match="there already"):
        live.restore(words=("--manage-cgroups=strict",))


def test_groups_are_left_alone(live):
    live.dump()
    live.restore(words=("--manage-cgroups=ignore",))
    assert where(live) == []


def test_another_root(live):
    live.dump()
    roots = (f"freezer:/{NAME}-new", f"pids:/{NAME}")
    live.restore(words=[word for root in roots for word in ("--cgroup-root", root)])
    assert where(live) == [f":/{NAME}/inner", *roots]


def test_a_child_in_another_group(live):
    (live.folder / "step1").touch()
    live.await_file("done1")
    children = Path(f"/proc/{live.pid}/task/{live.pid}/children").read_text().split()
    live.mark()
    (HIERARCHIES[0] / NAME / "cgroup.procs").write_text(children[0])
    live.dump()
    live.restore()
    inner = Path(f"/proc/{live.pid}/cgroup").read_text()
    assert f"freezer:/{NAME}/inner" in inner
    child = Path(f"/proc/{children[0]}/cgroup").read_text()
    assert f"freezer:/{NAME}\n" in child
    assert f"pids:/{NAME}/inner\n" in child
    assert live.verdict() == "ok"

# SPDX-License-Identifier: Apache-2.0
"""The freezer on plain directories (no root), then on real v1 and v2 cgroups."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torpor.engine.errors import Refused, Timeout, Vanished
from torpor.engine.kernel import freezer


def fake_v1(path: Path) -> Path:
    path.mkdir()
    (path / "freezer.state").write_text("THAWED\n")
    (path / "freezer.self_freezing").write_text("0\n")
    (path / "cgroup.procs").write_text("")
    return path


def fake_v2(path: Path, events: str = "populated 1\nfrozen 0\n") -> Path:
    path.mkdir()
    (path / "cgroup.freeze").write_text("0\n")
    (path / "cgroup.events").write_text(events)
    (path / "cgroup.procs").write_text("")
    return path


def test_no_cgroups_is_nothing():
    with freezer.frozen([]) as cut:
        assert cut.cgroups == ()


def test_missing_directory(tmp_path: Path):
    with pytest.raises(Vanished), freezer.frozen([tmp_path / "no"]):
        pass


def test_plain_directory_is_refused(tmp_path: Path):
    with pytest.raises(Refused), freezer.frozen([tmp_path]):
        pass


def test_frozen_by_somebody_else_is_refused_and_left_alone(tmp_path: Path):
    first, second = fake_v2(tmp_path / "a"), fake_v1(tmp_path / "b")
    (second / "freezer.self_freezing").write_text("1\n")
    (second / "freezer.state").write_text("FROZEN\n")
    with pytest.raises(Refused, match="frozen already"), freezer.frozen([first, second]):
        pass
    assert (first / "cgroup.freeze").read_text() == "0\n"
    assert (second / "freezer.state").read_text() == "FROZEN\n"


def test_own_process_inside_is_refused(tmp_path: Path):
    cgroup = fake_v2(tmp_path / "a")
    (cgroup / "deep").mkdir()
    (cgroup / "deep" / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    with pytest.raises(Refused, match="holds the process"), freezer.frozen([cgroup]):
        pass


def test_timeout_thaws_what_was_frozen(tmp_path: Path):
    first, second = fake_v1(tmp_path / "a"), fake_v2(tmp_path / "b")
    with pytest.raises(Timeout), freezer.frozen([first, second], timeout_s=0.02):
        pass
    assert (first / "freezer.state").read_text().startswith("THAWED")
    assert (second / "cgroup.freeze").read_text().startswith("0")


def test_thaws_once_and_the_watchdog_goes(tmp_path: Path):
    cgroup = fake_v1(tmp_path / "a")
    with freezer.frozen([cgroup]) as cut:
        assert (cgroup / "freezer.state").read_text().startswith("FROZEN")
        cut.thaw()
        assert (cgroup / "freezer.state").read_text().startswith("THAWED")
        (cgroup / "freezer.state").write_text("FROZEN\n")  # another one's freeze
    assert (cgroup / "freezer.state").read_text() == "FROZEN\n"


# ---- real cgroups -------------------------------------------------------------------------


def hierarchy(kind: str) -> Path | None:
    """Where a v1 freezer or a v2 hierarchy is mounted here."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        fstype, _, options = right.split(" ", 2)
        if kind == "v2" and fstype == "cgroup2":
            return Path(left.split()[4])
        if kind == "v1" and fstype == "cgroup" and "freezer" in options.split(","):
            return Path(left.split()[4])
    return None


@pytest.fixture(params=["v1", "v2"])
def cgroup(request: pytest.FixtureRequest):
    root = hierarchy(request.param)
    if root is None or os.geteuid() != 0:
        pytest.skip(f"no {request.param} freezer that we may write")
    path = root / f"torpor-test-{os.getpid()}"
    path.mkdir()
    yield path
    freezer.thaw_leftover(path)  # a frozen task does not die
    for _ in range(200):
        for word in (path / "cgroup.procs").read_text().split():
            os.kill(int(word), signal.SIGKILL)
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"{path} stays")


def ticker(cgroup: Path, out: Path) -> subprocess.Popen[bytes]:
    """A process in the cgroup that appends to a file all the time."""
    code = (
        "import os,sys,time\n"
        f"open({str(cgroup / 'cgroup.procs')!r},'w').write('0')\n"
        f"f=os.open({str(out)!r},os.O_CREAT|os.O_WRONLY|os.O_APPEND)\n"
        "while True:\n os.write(f,b'x'); time.sleep(0.002)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not out.exists() or out.stat().st_size < 3:
        time.sleep(0.005)
    return process


def advances(path: Path, within_s: float) -> bool:
    start, size = time.monotonic(), path.stat().st_size
    while time.monotonic() - start < within_s:
        if path.stat().st_size > size:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.root
def test_real_freeze_and_thaw(cgroup: Path, tmp_path: Path):
    process = ticker(cgroup, tmp_path / "ticks")
    try:
        with freezer.frozen([cgroup]) as cut:
            assert freezer.is_frozen(cgroup)
            assert not advances(tmp_path / "ticks", 0.1)
            cut.thaw()
            assert advances(tmp_path / "ticks", 2)
        with pytest.raises(ZeroDivisionError), freezer.frozen([cgroup]):
            _ = 1 / 0
        assert advances(tmp_path / "ticks", 2)
    finally:
        freezer.thaw_leftover(cgroup)
        process.kill()
        process.wait()


@pytest.mark.root
def test_real_kill_9_of_the_holder_thaws(cgroup: Path, tmp_path: Path):
    process = ticker(cgroup, tmp_path / "ticks")
    code = (
        "import pathlib,sys,time\n"
        "from torpor.engine.kernel import freezer\n"
        f"with freezer.frozen([pathlib.Path({str(cgroup)!r})]):\n"
        " print('frozen',flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"frozen\n"
        assert not advances(tmp_path / "ticks", 0.1)
        holder.kill()
        holder.wait()
        assert advances(tmp_path / "ticks", 2)
        assert not freezer.is_frozen(cgroup)
    finally:
        freezer.thaw_leftover(cgroup)  # a frozen task does not die
        for each in (holder, process):
            each.kill()
            each.wait()
        if holder.stdout:
            holder.stdout.close()


@pytest.mark.root
def test_real_leftover_is_thawed(cgroup: Path, tmp_path: Path):
    process = ticker(cgroup, tmp_path / "ticks")
    try:
        name, word = (
            ("freezer.state", "FROZEN")
            if (cgroup / "freezer.state").exists()
            else ("cgroup.freeze", "1")
        )
        (cgroup / name).write_text(word)
        assert freezer.thaw_leftover(cgroup)
        assert advances(tmp_path / "ticks", 2)
        assert not freezer.thaw_leftover(cgroup)
        assert not freezer.thaw_leftover(cgroup / "gone")
    finally:
        freezer.thaw_leftover(cgroup)
        process.kill()
        process.wait()

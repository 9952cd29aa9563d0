# SPDX-License-Identifier: Apache-2.0
"""The commands as a user types them, on a live tree: a shell that counts, and its child."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.functional, pytest.mark.root]

COUNTER = """\
i=0
trap 'exit 7' TERM
while :; do
    i=$((i + 1))
    echo $i >> {ticks}
    sleep 0.05
    if [ -e {stop} ]; then exit 3; fi
done
"""


class Counter:
    """A tree that appends numbers to a file, without an end."""

    def __init__(self, folder: Path) -> None:
        self.ticks, self.stop = folder / "ticks", folder / "stop"
        script = folder / "counter.sh"
        script.write_text(COUNTER.format(ticks=self.ticks, stop=self.stop))
        self.process = subprocess.Popen(
            ["sh", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self.pid = self.process.pid
        self.wait_for_more()

    def numbers(self) -> list[int]:
        return [int(word) for word in self.ticks.read_text().split()] if self.ticks.exists() else []

    def wait_for_more(self, timeout_s: float = 10) -> None:
        """It counts on, and has never lost or repeated a number."""
        before, deadline = len(self.numbers()), time.monotonic() + timeout_s
        while len(self.numbers()) < before + 2:
            assert time.monotonic() < deadline, "it does not count on"
            time.sleep(0.02)
        assert self.numbers() == list(range(1, len(self.numbers()) + 1))

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Wait until no task has the pid or the session any more; init reaps the orphans."""
        self.process.wait(timeout=10)
        deadline = time.monotonic() + 20
        while self.pid in sessions():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # orphans come to the tests (tests/conftest.py)
            assert time.monotonic() < deadline, "the tree has not gone"
            time.sleep(0.02)


def sessions() -> set[int]:
    """Sessions of all tasks, zombies too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found.add(int(stat.read_text().rpartition(")")[2].split()[3]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture
def counter(tmp_path):
    one = Counter(tmp_path)
    yield one
    one.end()


def run(*words, module="cli", timeout=60, **more):
    command = [sys.executable, "-m", f"torpor.engine.{module}", *map(str, words)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        **more,
    )


def dumped(counter, folder, *words):
    done = run("dump", counter.pid, "-D", folder, *words)
    assert done.returncode == 0, done.stderr
    counter.reap()
    return done


def test_dump_show_restore(counter, tmp_path):
    done = dumped(counter, tmp_path / "images")
    assert re.search(r"dumped 2 tasks, 2 threads, \d+ descriptors", done.stdout)
    assert "they were ended" in done.stdout
    shown = run("show", tmp_path / "images").stdout
    assert f"{counter.pid} sh  sh {tmp_path}/counter.sh" in shown
    assert re.search(r"└─ \d+ sleep  sleep 0.05", shown)
    assert "all digests match" in shown
    last = counter.numbers()[-1]
    done = run("restore", "-D", tmp_path / "images", "-d", "--pidfile", tmp_path / "pid")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pid").read_text() == str(counter.pid)
    counter.wait_for_more()
    assert counter.numbers()[-1] > last


def test_left_running_it_counts_on(counter, tmp_path):
    done = run("dump", "-t", counter.pid, "-D", tmp_path / "images", "-R", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["tasks"], report["threads"]) == (2, 2)
    assert 0 < report["frozen_s"] < 5
    assert sum(report["pause_s"].values()) == pytest.approx(report["frozen_s"], abs=1e-4)
    assert {"stop", "threads", "descriptors", "memory", "let go"} <= report["pause_s"].keys()
    assert report["images_dir"] == str(tmp_path / "images")
    counter.wait_for_more()
    shown = json.loads(run("show", tmp_path / "images", "--json").stdout)
    assert shown["pause"]["steps_s"] == report["pause_s"]
    assert [task["comm"] for task in shown["tasks"]] == ["sh", "sleep"]
    assert shown["tasks"][0]["args"] == ["sh", f"{tmp_path}/counter.sh"]
    assert shown["origin"]["tool"] == "torpor"


def test_restore_waits_and_exits_as_the_root_does(counter, tmp_path):
    dumped(counter, tmp_path / "images")
    counter.stop.touch()
    done = run("restore", "-D", tmp_path / "images")
    assert done.returncode == 3, done.stderr


def test_signals_to_a_waiting_restore_reach_the_root(counter, tmp_path):
    dumped(counter, tmp_path / "images")
    command = [sys.executable, "-m", "torpor.engine.cli", "restore", "-D", tmp_path / "images"]
    waiting = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    counter.wait_for_more(30)
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(timeout=10) == 7


def test_a_refusal_names_what_and_leaves_the_tree_alone(tmp_path):
    reading, writing = os.pipe()
    child = subprocess.Popen(["sleep", "60"], stdout=writing, start_new_session=True)
    try:
        done = run("dump", child.pid, "-D", tmp_path / "images", "--json")
        assert done.returncode == 3, done.stderr
        error = json.loads(done.stdout)
        assert error["reason"] == "Refused"
        assert "pipe" in error["subject"]
        assert error["remedy"]
        assert not (tmp_path / "images").exists()
        assert Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "S"
        assert "refused: task" in run("dump", child.pid, "-D", tmp_path / "images").stderr
    finally:
        child.kill()
        child.wait()
        os.close(reading)
        os.close(writing)


def test_the_plan_of_a_restore_touches_nothing_and_tells_all(counter, tmp_path):
    dumped(counter, tmp_path / "images")
    before = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    plan = run("plan", tmp_path / "images")
    assert plan.returncode == 0, plan.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "images").iterdir()} == before
    assert not Path(f"/proc/{counter.pid}").exists()
    text = plan.stdout
    assert "Nothing has been done." in text
    assert f"task {counter.pid} (sh), the root" in text
    assert re.search(rf"task \d+ \(sleep\), child of {counter.pid}", text)
    for wanted in (
        "openat(AT_FDCWD, '",
        "MAP_PRIVATE|MAP_FIXED",
        "(SIGTERM, handler 0x",
        "* execute /",
        "dup3(",
        "# working directory",
        "prctl(PR_SET_MM, PR_",
    ):
        assert wanted in text, wanted
    assert run("restore", "-D", tmp_path / "images", "--plan").stdout == text
    sections = json.loads(run("plan", tmp_path / "images", "--json").stdout)["sections"]
    assert sections[0]["title"].startswith(f"task {counter.pid} ")


def test_the_plan_of_a_dump_touches_nothing(counter, tmp_path):
    done = run("plan", counter.pid, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(counter.pid) in done.stdout
    assert not (tmp_path / "images").exists()
    counter.wait_for_more()


def test_the_criu_name_dumps_and_restores(counter, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    done = run("dump", "-t", counter.pid, "-D", images, "-v4", "-o", "dump.log", module="criu")
    assert done.returncode == 0, done.stderr
    counter.reap()
    done = run(
        "restore", "-D", images, "-d", "-v4", "-o", "restore.log", "--pidfile", "pid", module="criu"
    )
    assert done.returncode == 0, done.stderr
    assert (images / "pid").read_text() == str(counter.pid)
    for name in ("dump.log", "restore.log"):
        lines = (images / name).read_text().splitlines()
        assert all(re.match(r"\(\d\d\.\d{6}\) ", text) for text in lines)
        assert not [text for text in lines if "Error" in text]
    (told,) = re.findall(r"\) pause: (.+)", (images / "dump.log").read_text())
    assert {"stop", "threads", "memory"} <= {step.split()[0] for step in told.split(", ")}
    counter.wait_for_more()


def test_the_criu_name_fails_as_criu_does(tmp_path):
    done = run("dump", "-t", "4194303", "-D", tmp_path, "-v4", "-o", "dump.log", module="criu")
    assert done.returncode == 1
    lines = (tmp_path / "dump.log").read_text().splitlines()
    assert [text for text in lines if re.match(r"\(\d\d\.\d{6}\) Error \(\w+:\d+\): ", text)]


def test_a_task_that_is_not_there_is_said(tmp_path):
    done = run("dump", "4194303", "-D", tmp_path / "images")
    assert done.returncode == 4
    assert "4194303" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_tells_the_ladder():
    done = run("check", "--json")
    told = json.loads(done.stdout)
    assert told["rungs"]["1"] is (done.returncode == 0)
    assert {f["rung"] for f in told["features"]} == {1, 2, 3}
    assert "1. with no right at all" in run("check").stdout


def test_damaged_images_are_refused_by_every_command(counter, tmp_path):
    dumped(counter, tmp_path / "images")
    (page,) = (tmp_path / "images").glob(f"core-{counter.pid}.img")
    page.write_bytes(page.read_bytes()[:-3] + b"\0\0\0")
    for words in (
        ("show", tmp_path / "images"),
        ("plan", tmp_path / "images"),
        ("restore", "-D", tmp_path / "images", "-d"),
    ):
        done = run(*words)
        assert done.returncode == 7, words
        assert "bad image: " in done.stderr
    assert not Path(f"/proc/{counter.pid}").exists()

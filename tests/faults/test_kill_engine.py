# SPDX-License-Identifier: Apache-2.0
"""The engine is killed at any instant of a dump, and the workload takes no notice.

A busy tree (`busy_tree.c`) is dumped again and again, each dump by a new process that gets
SIGKILL after a time of chance. After each kill every thread runs on untraced with its mask,
nothing is pending, memory and descriptors are as they were; at the end no number was lost or
repeated, and no tick of a timer. Of a snapshot no copy is left either.
"""

import json
import os
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.root]

HERE = Path(__file__).parent
MEMBERS = 4
INSTANTS = 250  # at which an engine was still at work
FROZEN_INSTANTS = 50  # more, chosen within the pause and what leads to it
COMMANDS = 10
PATIENCE_S = 5
UNDERTAKER = "torpor-undertaker"
SEED = 4


class BusyTree:
    """The workload, and all that has to stay as it is."""

    def __init__(self, folder: Path) -> None:
        program = folder / "busy_tree"
        source = HERE / "busy_tree.c"
        subprocess.run(["gcc", "-O1", "-Wall", "-pthread", "-o", program, source, "-lrt"],
                       check=True)  # fmt: skip
        self.folder = folder
        self.process = subprocess.Popen(
            [program, folder], start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self.process.pid
        deadline = time.monotonic() + PATIENCE_S
        while len(children(self.pid)) < MEMBERS - 1 or self.word(3 * MEMBERS) != MEMBERS:
            assert time.monotonic() < deadline, "the tree did not start"
            time.sleep(0.01)
        self.pids = [self.pid, *children(self.pid)]
        self.whole = self.at_rest()

    def word(self, number: int) -> int:
        status = self.folder / "status"
        content = status.read_bytes() if status.exists() else b""
        return int(struct.unpack_from("Q", content, 8 * number)[0]) if content else 0

    def progress(self) -> list[int]:
        """Laps of each member, counts of each one's thread, alarms of each."""
        return [self.word(i) for i in range(3 * MEMBERS)]

    def look(self) -> dict[str, object]:
        """State of every thread, memory and descriptors of every task."""
        said: dict[str, object] = {"children": children(self.pid)}
        for pid in self.pids:
            said[f"{pid} areas"] = areas(pid)
            said[f"{pid} watched"] = watched(pid)
            said[f"{pid} descriptors"] = descriptors(pid)
            for tid in sorted(os.listdir(f"/proc/{pid}/task")):
                said[f"{pid}/{tid}"] = thread(pid, tid)
        return said

    def at_rest(self) -> dict[str, object]:
        """A look with no thread inside of a handler, and nothing pending."""
        deadline = time.monotonic() + 10 * PATIENCE_S
        while True:
            said = self.look()
            threads = [
                told for told in said.values() if isinstance(told, dict) and "SigPnd" in told
            ]
            masks = {told["SigBlk"] for told in threads}
            pending = {told["SigPnd"] + told["ShdPnd"] for told in threads}
            if len(threads) == 2 * MEMBERS and len(masks) == 2 and pending == {"0" * 32}:
                return said
            assert time.monotonic() < deadline, said
            time.sleep(0.001)

    def unharmed(self) -> None:
        """As it was, and every member of it goes on.

        A thread may be seen inside of a handler, or with a tick on its way: each thing has to
        be seen once as it was. What is wrong for good never is.
        """
        begin, deadline = self.progress(), time.monotonic() + PATIENCE_S
        left = set(self.whole)
        while True:
            now = self.look()
            assert now.keys() == self.whole.keys()
            left = {name for name in left if now[name] != self.whole[name]}
            moved = zip(begin, self.progress(), strict=True)
            still = [i for i, (before, after) in enumerate(moved) if before == after]
            result = self.folder / "result"
            assert not result.exists(), result.read_text()
            if not left and not still:
                return
            told = {name: (self.whole[name], now[name]) for name in left}
            assert time.monotonic() < deadline, f"differs: {told}; does not go on: {still}"
            time.sleep(0.001)

    def finish(self) -> None:
        """Stop it; what it says of itself, and what it has written down."""
        with (self.folder / "status").open("r+b") as file:
            file.seek(8 * (3 * MEMBERS + 1))
            file.write(struct.pack("Q", 1))
        assert self.process.wait(30) == 0, (self.folder / "result").read_text()
        assert (self.folder / "result").read_text() == "ok"
        for member in range(MEMBERS):
            content = (self.folder / f"ticks-{member}").read_bytes()
            numbers = struct.unpack(f"{len(content) // 8}Q", content)
            assert numbers == tuple(range(len(numbers)))
            assert len(numbers) > INSTANTS

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return sorted(int(word) for word in text.split())


def areas(pid: int) -> list[str]:
    """Ranges and protections; the heap's end may move, and the stack's.

    A thread whose engine died returns from the lowest pages of its stack; if a signal comes in
    that microsecond, its handler runs there and the kernel adds a page below.
    """
    lines = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, rest = line.split(" ", 1)
        if rest.endswith("[heap]"):
            addresses = addresses.split("-")[0]
        if rest.endswith("[stack]"):
            addresses = addresses.split("-")[1]
        lines.append(f"{addresses} {rest}")
    return lines


def watched(pid: int) -> list[str]:
    """Areas whose writes a userfaultfd tracks."""
    flags = re.findall(r"^VmFlags: (.*)$", Path(f"/proc/{pid}/smaps").read_text(), re.M)
    return [line for line in flags if {"um", "uw", "ui"} & set(line.split())]


def descriptors(pid: int) -> dict[str, str]:
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
        flags = re.search(r"^flags:\s+(\d+)", info, re.M)
        found[number] = f"{os.readlink(f'/proc/{pid}/fd/{number}')} {flags and flags[1]}"
    return found


def thread(pid: int, tid: str) -> dict[str, str]:
    text = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):\s*(.*)$", text, re.M))
    told = {name: fields[name] for name in ("TracerPid", "SigBlk", "SigIgn", "SigCgt", "SigPnd",
                                            "ShdPnd", "Seccomp", "NoNewPrivs")}  # fmt: skip
    told["stopped"] = str(fields["State"][0] in "Tt")
    return told


class Server:
    """Starts engines (`engine_server.py`) that take memory in one way."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.process = subprocess.Popen(
            [sys.executable, HERE / "engine_server.py"], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def begin(self, pid: int, folder: Path) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{pid} {folder} {self.way}\n")
        self.process.stdin.flush()
        word, engine = self.process.stdout.readline().split()
        assert word == "begun"
        return int(engine)

    def end(self) -> tuple[dict[str, object] | None, int]:
        """The report, if it came so far, and the wait status."""
        assert self.process.stdout
        line, report = self.process.stdout.readline(), None
        if line.startswith("{"):
            report, line = json.loads(line), self.process.stdout.readline()
        word, status = line.split()
        assert word == "ended"
        return report, int(status)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def tree(tmp_path):
    one = BusyTree(tmp_path)
    yield one
    one.end()


@pytest.fixture(params=["auto", "snapshot", "pre-copy"])
def server(request):
    one = Server(request.param)
    yield one
    one.close()


def whole_dumps(server, tree):
    """When the pause begins and ends, and how long a dump takes: the median of some."""
    looks, frozen, totals = [], [], []
    for number in range(7):
        images = tree.folder / f"whole-{number}"
        begin = time.monotonic()
        server.begin(tree.pid, images)
        report, status = server.end()
        assert report is not None, status
        assert status == 0
        assert report["way"] == {"auto": "frozen"}.get(server.way, server.way)
        assert (report["copied"] > 0) is (server.way == "pre-copy")
        totals.append(time.monotonic() - begin)
        before_s = report["phases_s"]["look"] + report["phases_s"]["prepare memory"]
        looks.append(before_s)
        frozen.append(before_s + report["frozen_s"])
        shutil.rmtree(images)
        tree.unharmed()
    return min(looks), statistics.median(frozen), statistics.median(totals)


def kill_at(server, tree, delay_s):
    """Kill an engine so long after its start; whether it was still at work."""
    images = tree.folder / "images"
    engine = server.begin(tree.pid, images)
    time.sleep(delay_s)
    with suppress(ProcessLookupError):
        os.kill(engine, signal.SIGKILL)
    _, status = server.end()
    await_undertaker(tree)
    tree.unharmed()
    for path in tree.folder.glob("*images*"):
        shutil.rmtree(path)
    assert status in (0, signal.SIGKILL), f"a dump failed: wait status {status:#x}"
    return status == signal.SIGKILL


def await_undertaker(tree):
    """Who sees copies to their end is a tracer for a moment."""
    deadline = time.monotonic() + 2 * PATIENCE_S
    wanted = f"{UNDERTAKER}\0{tree.pid}\0".encode()
    while any(wanted in command for command in commands()):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def commands():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


def test_killed_at_any_instant(tree, server):
    look_s, frozen_s, total_s = whole_dumps(server, tree)
    chance = random.Random(SEED)
    spans = {"dump": (0, total_s, INSTANTS), "pause": (look_s / 2, frozen_s, FROZEN_INSTANTS)}
    for name, (begin_s, end_s, wanted) in spans.items():
        killed = 0
        for _ in range(3 * wanted):
            killed += kill_at(server, tree, chance.uniform(begin_s, end_s))
            if killed == wanted:
                break
        assert killed == wanted, f"{name}: only {killed} engines were still at work"
    tree.finish()


@pytest.mark.parametrize("program", ["cli", "criu"])
def test_killed_command(tree, program):
    images = tree.folder / "images"
    whom = [str(tree.pid)] if program == "cli" else ["-t", str(tree.pid), "-v4", "-o", "dump.log"]
    command = [sys.executable, "-m", f"torpor.engine.{program}", "dump", *whom, "-D", str(images),
               "--leave-running"]  # fmt: skip
    images.mkdir()
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole_s = time.monotonic() - begin
    assert (images / "inventory.img").exists()
    shutil.rmtree(images)
    chance = random.Random(SEED)
    for _ in range(COMMANDS):
        images.mkdir()
        engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(whole_s / 2, whole_s))
        engine.kill()
        engine.wait()
        tree.unharmed()
        for path in tree.folder.glob("*images*"):
            shutil.rmtree(path)
    tree.finish()

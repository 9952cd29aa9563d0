# SPDX-License-Identifier: Apache-2.0
"""Tun and tap interfaces whose network is another one by the time of the restore."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.functional, pytest.mark.root]
WORKLOAD = Path(__file__).parent / "workloads/devices_tun.py"
CRIU = (sys.executable, "-m", "torpor.engine.criu")
WAIT_S = 30


class Place:
    """A network namespace of its own, a workload in it, and commands that run in it."""

    def __init__(self, folder):
        self.folder = folder
        self.begun = []
        self.net = self.new_network()

    def new_network(self):
        holder = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
        self.begun.append(holder)
        link, ours = Path(f"/proc/{holder.pid}/ns/net"), Path("/proc/self/ns/net").readlink()
        until(lambda: link.readlink() != ours)
        return f"--net={link}"

    def run(self, *words):
        return subprocess.run(
            ["nsenter", self.net, *words], check=False, capture_output=True, text=True
        )

    def begin(self, state):
        words = ["nsenter", self.net, sys.executable, str(WORKLOAD), str(self.folder), state]
        with (self.folder / "out").open("w") as out:
            task = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                    start_new_session=True)  # fmt: skip
        self.begun.append(task)
        until((self.folder / "ready").exists)
        if (text := (self.folder / "ready").read_text()).startswith("lacking"):
            pytest.skip(f"this machine lacks {text.removeprefix('lacking: ')}")
        return task.pid

    def dump(self, pid, *more):
        (self.folder / "images").mkdir(exist_ok=True)
        found = self.run(*CRIU, "dump", "-t", str(pid), "-D", str(self.folder / "images"), *more)
        assert found.returncode == 0, found.stderr
        for task in self.begun:
            task.poll()

    def restore(self):
        return self.run(*CRIU, "restore", "-D", str(self.folder / "images"), "-d",
                        "--pidfile", str(self.folder / "pid"))  # fmt: skip

    def verdict(self):
        (self.folder / "go").touch()
        until((self.folder / "result").exists)
        return (self.folder / "result").read_text()

    def links(self):
        return self.run("ip", "-o", "link").stdout

    def end(self):
        pid = self.folder / "pid"
        if pid.exists():
            subprocess.run(["kill", "-9", pid.read_text().strip()], check=False)
        for task in self.begun:
            task.kill()
            task.wait()


def until(done):
    end = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.end()


def test_one_that_persists(place):
    pid = place.begin("lasting")
    place.dump(pid)
    assert "torpor-tap" in place.links()
    found = place.restore()
    assert found.returncode == 0, found.stderr
    assert place.verdict() == "ok"


def test_one_that_persists_in_a_network_without_it(place):
    """The bridge must be there: who made the network makes it."""
    pid = place.begin("lasting")
    place.dump(pid)
    place.net = place.new_network()
    found = place.restore()
    assert found.returncode != 0
    assert "torpor-bridge must be there" in found.stderr
    assert "torpor-tap" not in place.links()
    assert place.run("ip", "link", "add", "torpor-bridge", "type", "bridge").returncode == 0
    found = place.restore()
    assert found.returncode == 0, found.stderr
    assert place.verdict() == "ok"
    assert "torpor-tap" in place.links()


def test_its_number_is_taken(place):
    pid = place.begin("tun")
    place.dump(pid)
    number = next(line for line in place.links().splitlines() if "lo:" in line)
    assert number.startswith("1:")
    place.net = place.new_network()
    for name in ("one", "other"):
        assert place.run("ip", "link", "add", name, "type", "bridge").returncode == 0
    assert "\n2: one" in place.links()
    found = place.restore()
    assert found.returncode == 0, found.stderr
    assert place.verdict() == "ok"


def test_its_name_is_taken(place):
    pid = place.begin("tun")
    place.dump(pid)
    assert place.run("ip", "link", "add", "torpor0", "type", "bridge").returncode == 0
    found = place.restore()
    assert found.returncode != 0
    assert "let no other interface have the name torpor0" in found.stderr
    assert place.run("ip", "link", "del", "torpor0").returncode == 0
    found = place.restore()
    assert found.returncode == 0, found.stderr
    assert place.verdict() == "ok"


def test_it_was_deleted_under_the_program(place):
    """Its descriptor is one without an interface then."""
    pid = place.begin("info")
    assert place.run("ip", "link", "del", "torpor0").returncode == 0
    place.dump(pid)
    assert place.restore().returncode == 0
    assert "torpor0" not in place.links()


def test_a_socket_bound_to_one_that_was_deleted(place):
    pid = place.begin("tun")
    assert place.run("ip", "link", "del", "torpor0").returncode == 0
    (place.folder / "images").mkdir()
    found = place.run(*CRIU, "dump", "-t", str(pid), "-D", str(place.folder / "images"))
    assert found.returncode != 0
    assert "bound to a network interface that is gone" in found.stderr


def test_packets_that_wait_are_told_of(place):
    pid = place.begin("tun")
    send = "import socket; socket.socket(2, 2).sendto(b'waits', ('203.0.113.9', 7))"
    assert place.run(sys.executable, "-c", send).returncode == 0
    place.dump(pid, "--leave-running", "-v4", "-o", "log")
    told = (place.folder / "images/log").read_text()
    assert "packets that wait to be read from torpor0 are lost" in told

# SPDX-License-Identifier: Apache-2.0
"""A pre-copy whose store is slow, and one whose agent is killed; nobody else may suffer.

The store is made slow by the block layer: what the agent syncs to its disk gets so many bytes a
second. A new agent has a new control group, and with it the whole disk.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from deploy.image.process import BuildError
from tests.e2e import kube
from tests.e2e.clients.bench import MOVES
from tests.e2e.clients.programs import LEDGER, LEDGER_QUERY
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.faulty import Object, agent_pid, brought_up, left_behind, pod, remove, settle, until

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.slow]

MIB = 32
QUICK_PAGES_S, SLOW_PAGES_S = 2000, 200
STORE_BYTES_S = 4 << 20
"""Less than the quick program writes, more than the slow one."""
THROTTLE = """
v1=$(sed -n 's/.*:blkio://p' /proc/{pid}/cgroup)
v2=$(sed -n 's/^0:://p' /proc/{pid}/cgroup)
if [ "$v1" ]; then
  echo "{device} {bytes_s}" > /sys/fs/cgroup/blkio$v1/blkio.throttle.write_bps_device
else
  echo "{device} wbps={limit}" > /sys/fs/cgroup$v2/io.max
fi
"""
LOOK = """
for thread in /proc/{pid}/task/*; do
  sed -n 's/^\\(State\\|TracerPid\\):.\\(.\\).*/\\1 \\2/p' $thread/status
done
grep -q '^VmFlags:.* uw' /proc/{pid}/smaps && echo watched
ls -l /proc/{pid}/fd | grep -q userfaultfd && echo descriptor
group=$(sed -n 's/.*:freezer:\\(.*kubepods.*\\)/\\1/p' /proc/{pid}/cgroup)
for at in "$group" "${{group%/*}}"; do cat /sys/fs/cgroup/freezer$at/freezer.state; done
true
"""
SETTLED_S, LET_GO_S = 120.0, 10.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with torpor."""
    with brought_up() as made:
        yield made


@dataclass(slots=True)
class Ledger:
    """A pod with the program that writes to its memory all the time."""

    cluster: Cluster
    name: str
    first: Object = field(default_factory=dict)
    pid: int = 0

    def start(self, pages_s: int) -> "Ledger":
        command = [*LEDGER, "serve", str(MIB), str(pages_s)]
        kube.apply(self.cluster, pod(self.name, image="python", container={"command": command}))
        kube.wait_pod(self.cluster, self.name)
        self.first = until(self._asked)
        self.pid = kube.container_pid(self.cluster, self.name)
        return self

    def ask(self) -> Object:
        text = self.cluster.kubectl("exec", self.name, "--", *LEDGER_QUERY, timeout_s=60)
        answer: Object = json.loads(text)
        return answer

    def _asked(self) -> Object | None:
        with suppress(BuildError):  # it does not listen yet
            return self.ask()
        return None

    def check(self) -> None:
        """It is the same program, its memory is of one instant, and it goes on."""
        now = self.ask()
        assert now["identity"] == self.first["identity"], "started afresh"
        assert now["whole"], "its memory is damaged"
        assert now["written"] > self.first["written"], "it stands still"
        self.first = now

    def state(self) -> set[str]:
        """Of its process, as its node sees it."""
        with suppress(BuildError):
            text = self.cluster.on("a", LOOK.format(pid=self.pid))
            return set(text.splitlines())
        return {"gone"}

    def is_watched(self) -> bool:
        """Whether rounds go on: it is watched, and runs."""
        found = self.state()
        return "watched" in found and not found & {"State t", "FROZEN"}

    def stands_still(self) -> bool:
        """It does now, and some time later."""
        for _ in range(2):
            if not self.state() & {"State t", "State T", "FROZEN"}:
                return False
            time.sleep(0.3)
        return True

    def is_free(self) -> bool:
        """Nothing is left of a checkpoint: it runs, not traced, not frozen, not watched."""
        found = self.state()
        left = {"State t", "State T", "FROZEN", "FREEZING", "watched", "descriptor", "gone"}
        tracers = {line for line in found if line.startswith("TracerPid")}
        return not found & left and tracers == {"TracerPid 0"}


@contextmanager
def slow_store(cluster: Cluster) -> Iterator[None]:
    """As long as this agent lives, or until the block ends."""
    device = os.stat(cluster.shared).st_dev
    pid = agent_pid(cluster, "a")

    def limit(bytes_s: int) -> None:
        cluster.on(
            "a",
            THROTTLE.format(
                pid=pid,
                device=f"{os.major(device)}:{os.minor(device)}",
                bytes_s=bytes_s,
                limit=bytes_s or "max",
            ),
        )

    limit(STORE_BYTES_S)
    try:
        yield
    finally:
        with suppress(BuildError):  # the group has gone with the agent
            limit(0)


def precopy(name: str, of: str) -> Object:
    return kube.checkpoint(name, of, after="Stop", memory={"way": "PreCopy"}, timeout="3m")


def test_store_slower_than_the_writes(cluster: Cluster) -> None:
    """Rounds that bring nothing end, and the status says why."""
    ledger = Ledger(cluster, "quick").start(QUICK_PAGES_S)
    with slow_store(cluster):
        kube.apply(cluster, precopy("slow-store", "quick"))
        done = kube.wait_ready(cluster, "checkpoint", "slow-store", timeout_s=SETTLED_S)
    (container,) = done["status"]["containers"]
    way = container["memoryWay"]
    assert way.startswith("pre-copy: "), way
    assert "left after" in way, way
    assert "writes faster than they get fewer" in way or "were copied already" in way, way
    assert "s" in done["status"]["steps"]["stopped until stored"]
    MOVES.append(f"slow store: {way}; {done['status']['steps']}")
    kube.apply(cluster, kube.restore("slow-store", "slow-store", node="b", pod="quick-back"))
    kube.wait_ready(cluster, "restore", "slow-store")
    Ledger(cluster, "quick-back", first=ledger.first).check()
    remove(cluster, "pod", "quick-back")


@pytest.mark.parametrize(
    ("when", "pages_s"), [("between-rounds", SLOW_PAGES_S), ("in-the-stop", QUICK_PAGES_S)]
)
def test_agent_killed_in_a_pre_copy(cluster: Cluster, when: str, pages_s: int) -> None:
    """The workload goes on without help, and the object is taken up again to its end."""
    ledger = Ledger(cluster, when).start(pages_s)
    moment = ledger.is_watched if when == "between-rounds" else ledger.stands_still
    with slow_store(cluster):
        pid = agent_pid(cluster, "a")
        kube.apply(cluster, precopy(f"killed-{when}", when))
        until(ledger.is_watched, every_s=0.01)
        until(moment, every_s=0.01)
        killed_s = time.monotonic()
        cluster.on("a", f"kill -9 {pid}")
        until(ledger.is_free, timeout_s=LET_GO_S, every_s=0.02)
        MOVES.append(f"killed {when}: let go after {time.monotonic() - killed_s:.2f} s")
    reason, message = settle(cluster, "checkpoint", f"killed-{when}", timeout_s=SETTLED_S)
    assert reason in ("Completed", "AgentRestarted"), message
    name = when
    if reason == "Completed":
        name = f"{when}-back"
        kube.apply(cluster, kube.restore(f"killed-{when}", f"killed-{when}", node="b", pod=name))
        kube.wait_ready(cluster, "restore", f"killed-{when}")
    Ledger(cluster, name, first=ledger.first).check()
    remove(cluster, "pod", when, name)
    until(lambda: left_behind(cluster, "a") == {}, timeout_s=20)

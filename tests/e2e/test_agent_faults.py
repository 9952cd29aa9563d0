# SPDX-License-Identifier: Apache-2.0
"""Parts of torpor are killed in the middle of checkpoints; nobody else may suffer.

After each death the workload goes on at once, without help from a new agent: the kernel and the
watchdog let it go. The object is taken up again, or ends in a condition that says why.
"""

import random
import re
import time
from collections.abc import Iterator

import pytest

from tests.e2e import kube
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.layout import CONTROL_PLANE
from tests.e2e.faulty import (
    AGENT,
    CONTROLLER,
    Workload,
    agent_pid,
    brought_up,
    left_behind,
    remove,
    settle,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.slow]

ROUNDS = 10
"""Each kills the agents of both nodes."""
LONGEST_DELAY_S = 0.7
HEAP_MIB = 64
CLEAR = ("Completed", "AgentRestarted")
NODES = ("a", "b")
POD = re.compile(r"/(?:[a-z-]*)pod([0-9a-f-]{36})")
WORKLOADS = {"a": "busy-a", "b": "busy-b"}
STATES = """set +e
for task in /proc/[0-9]*; do
  if grep -q {container} $task/cgroup 2>/dev/null; then
    sed -n 's/^State:.\\(.\\).*/\\1/p' $task/status
    group=$(sed -n 's/.*:freezer:.*\\(kubepods.*\\)/\\1/p' $task/cgroup)
    for root in /sys/fs/cgroup/freezer /sys/fs/cgroup/freezer/*; do
      cat "$root/$group/freezer.state"
    done
  fi
done 2>/dev/null; true
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with torpor."""
    with brought_up() as made:
        yield made


@pytest.fixture(scope="module")
def busy(cluster: Cluster) -> Iterator[dict[str, Workload]]:
    """A counter with much memory on each node."""
    made = {
        node: Workload(cluster, name).start(node, heap_mib=HEAP_MIB)
        for node, name in WORKLOADS.items()
    }
    yield made
    for workload in made.values():
        workload.remove()


def container_of(cluster: Cluster, name: str) -> str:
    (status,) = kube.get(cluster, "pod", name)["status"]["containerStatuses"]
    return str(status["containerID"]).partition("//")[2]


def runs(cluster: Cluster, node: str, container: str) -> bool:
    """Whether its tasks are neither stopped nor frozen, as the node sees them."""
    words = set(cluster.on(node, STATES.format(container=container)).split())
    assert words, "the container is gone"
    return not words & {"t", "T", "FROZEN", "FREEZING"}


def pods_with_agents(cluster: Cluster, node: str) -> set[str]:
    """UIDs of the pods in which a node runs agents."""
    script = f"for p in $(pgrep -f '{AGENT}'); do cat /proc/$p/cgroup; done 2>/dev/null || true"
    return set(POD.findall(cluster.on(node, script).replace("_", "-")))


def new_agents(cluster: Cluster) -> None:
    """Agents again, without the wait that kubelet puts before the restart of a container.

    The container of the old pod may be started once more before kubelet hears that its pod is
    gone; and the old agent ends in its own time, and only then does the new one work.
    """
    selector = ("-l", "app.kubernetes.io/component=agent")
    uids = ("-o", "jsonpath={.items[*].metadata.uid}")
    old = set(cluster.kubectl("get", "pod", "-n", kube.NAMESPACE, *selector, *uids).split())
    cluster.kubectl("delete", "pod", "-n", kube.NAMESPACE, *selector, "--force", "--grace-period=0")
    for node in NODES:
        until(lambda node=node: (now := pods_with_agents(cluster, node)) and not now & old)


def test_agents_killed_at_random_instants(cluster: Cluster, busy: dict[str, Workload]) -> None:
    containers = {node: container_of(cluster, name) for node, name in WORKLOADS.items()}
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    instants = random.Random(seed)
    outcomes: list[str] = []
    for index in range(ROUNDS):
        killers = {}
        for node in NODES:
            delay_s = instants.uniform(0.0, LONGEST_DELAY_S)
            command = f"read; sleep {delay_s:.3f}; kill -9 {agent_pid(cluster, node)}"
            killers[node] = cluster.popen_on(node, ["bash", "-c", command])
        names = {node: f"kill-{index}-{node}" for node in NODES}
        made = (kube.checkpoint(names[node], WORKLOADS[node]) for node in NODES)
        for killer in killers.values():
            assert killer.stdin
            killer.stdin.write("go\n")
            killer.stdin.flush()
        kube.apply(cluster, *made)
        for killer in killers.values():
            assert killer.wait(20) == 0
        for node in NODES:
            until(lambda node=node: runs(cluster, node, containers[node]), timeout_s=3)
        new_agents(cluster)
        for node in NODES:
            reason, message = settle(cluster, "checkpoint", names[node])
            assert reason in CLEAR, message
            outcomes.append(reason)
            busy[node].check()
        remove(cluster, "checkpoints.torpor.dev", *names.values())
    for node in NODES:
        until(lambda node=node: left_behind(cluster, node) == {}, timeout_s=20)
    assert len(outcomes) == 2 * ROUNDS
    assert outcomes.count("Completed") >= ROUNDS, outcomes


def test_what_was_taken_up_again_restores(cluster: Cluster, busy: dict[str, Workload]) -> None:
    pid = agent_pid(cluster, "a")
    kube.apply(cluster, kube.checkpoint("again", WORKLOADS["a"]))
    until(
        lambda: kube.condition(kube.get(cluster, "checkpoints.torpor.dev", "again"), "Captured"),
        every_s=0.02,
    )
    cluster.on("a", f"kill -9 {pid}")
    new_agents(cluster)
    kube.wait_ready(cluster, "checkpoint", "again")
    before = dict(busy["a"].first)
    kube.apply(cluster, kube.restore("again", "again", node="b", pod="again"))
    kube.wait_ready(cluster, "restore", "again")
    back = Workload(cluster, "again", first=before)
    back.check()
    back.remove()
    busy["a"].check()


def test_controllers_killed_during_checkpoints(cluster: Cluster, busy: dict[str, Workload]) -> None:
    for index, delay_s in enumerate((0.0, 0.3)):
        kube.apply(cluster, kube.checkpoint(f"headless-{index}", WORKLOADS["b"]))
        time.sleep(delay_s)
        for node in NODES:
            cluster.on(node, f"pkill -9 -f '{CONTROLLER}' || true")
        reason, message = settle(cluster, "checkpoint", f"headless-{index}")
        assert reason == "Completed", message
        busy["b"].check()


def test_api_server_restarts_during_a_checkpoint(
    cluster: Cluster, busy: dict[str, Workload]
) -> None:
    container = container_of(cluster, WORKLOADS["a"])
    for index, delay_s in enumerate((0.1, 0.3)):
        name = f"cut-off-{index}"
        kube.apply(cluster, kube.checkpoint(name, WORKLOADS["a"]))
        time.sleep(delay_s)
        cluster.on(CONTROL_PLANE, "pkill -9 -x kube-apiserver")
        until(lambda: runs(cluster, "a", container), timeout_s=3)
        cluster.start_units(CONTROL_PLANE)
        cluster.await_ready()
        reason, message = settle(cluster, "checkpoint", name)
        assert reason == "Completed", message
        busy["a"].check()
    assert left_behind(cluster, "a") == {}

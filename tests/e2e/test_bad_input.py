# SPDX-License-Identifier: Apache-2.0
"""Whatever is asked for wrongly, or goes wrong underneath, ends in a condition that says so.

All along a counter runs that many of these requests are about; after each of them it has to be
the same process, going on, and nothing may be left on its node.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.image.process import BuildError
from tests.e2e import kube
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.faulty import (
    AGENT,
    MOUNT,
    Object,
    Workload,
    brought_up,
    counter,
    in_agent,
    left_behind,
    pod,
    remove,
    settle,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.slow]

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1e6)"
USERFAULTFD = """
import ctypes, time
fd = ctypes.CDLL(None, use_errno=True).syscall(323, 1)
assert fd >= 0, ctypes.get_errno()
print("made", flush=True)
time.sleep(1e6)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with torpor."""
    with brought_up() as made:
        yield made


@pytest.fixture(scope="module")
def steady(cluster: Cluster) -> Iterator[Workload]:
    """The counter that nothing may harm."""
    workload = Workload(cluster, "steady").start()
    yield workload
    workload.remove()


@pytest.fixture(autouse=True)
def unharmed(cluster: Cluster, steady: Workload) -> Iterator[None]:
    """After each test."""
    yield
    steady.check()
    assert left_behind(cluster, "a") == {}


@pytest.fixture(scope="module")
def stored(cluster: Cluster, steady: Workload) -> str:
    """A good Checkpoint of the counter."""
    kube.apply(cluster, kube.checkpoint("good", "steady"))
    kube.wait_ready(cluster, "checkpoint", "good")
    return "good"


def refused(cluster: Cluster, made: Object, reason: str, *texts: str, **where: Any) -> str:
    """Apply an object that has to fail for that reason, with these texts in its message."""
    kube.apply(cluster, made, **where)
    name, kind = made["metadata"]["name"], made["kind"].lower()
    got, message = settle(cluster, kind, name, **where)
    assert got == reason, message
    for text in (*texts, "remedy: "):
        assert text in message
    return message


# ---- requests that cannot be met ---------------------------------------------------------


def test_no_such_pod(cluster: Cluster) -> None:
    refused(cluster, kube.checkpoint("bad-none", "nobody"), "PodNotFound", "'nobody'")


def test_pod_of_another_namespace(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "elsewhere")
    made = kube.checkpoint("bad-namespace", "steady")
    refused(cluster, made, "PodNotFound", "'elsewhere'", namespace="elsewhere")


def test_uid_of_another_pod(cluster: Cluster) -> None:
    made = kube.checkpoint("bad-uid", "steady", podRef={"name": "steady", "uid": "0-0-0"})
    refused(cluster, made, "PodReplaced", "0-0-0")


def test_no_such_container(cluster: Cluster) -> None:
    made = kube.checkpoint("bad-container", "steady", containers=["main", "side"])
    refused(cluster, made, "ContainerNotFound", "side", "main")


def test_no_such_store(cluster: Cluster) -> None:
    made = kube.checkpoint("bad-store", "steady", storeRef={"name": "nowhere"})
    refused(cluster, made, "StoreNotFound", "'nowhere'", "default")


def test_a_store_that_no_agent_mounts(cluster: Cluster) -> None:
    spec = {"volume": {"hostPath": {"path": "/elsewhere"}}}
    store = {
        "apiVersion": kube.API_VERSION, "kind": "CheckpointStore",
        "metadata": {"name": "unmounted"}, "spec": spec,
    }  # fmt: skip
    kube.apply(cluster, store)
    until(lambda: kube.condition(kube.get(cluster, "checkpointstore", "unmounted"), "Ready"))
    made = kube.checkpoint("bad-unmounted", "steady", storeRef={"name": "unmounted"})
    refused(cluster, made, "StoreNotFound", "'unmounted'", "do not mount")
    cluster.kubectl("delete", "checkpointstore", "unmounted")


def test_a_changed_spec_is_rejected(cluster: Cluster, stored: str) -> None:
    with pytest.raises(BuildError, match=r"immutable|cannot be changed"):
        kube.apply(cluster, kube.checkpoint(stored, "another"))


def test_host_network(cluster: Cluster) -> None:
    kube.apply(cluster, counter("host", hostNetwork=True))
    kube.wait_pod(cluster, "host")
    refused(cluster, kube.checkpoint("bad-host", "host"), "HostNetworkPod", "host")
    remove(cluster, "pod", "host")


def test_static_pod(cluster: Cluster) -> None:
    manifest = counter("static")
    del manifest["spec"]["nodeName"]
    where = "/etc/kubernetes/manifests"
    cluster.on("a", f"mkdir -p {where}")
    cluster.on("a", f"cat > {where}/static.json", input_text=json.dumps(manifest))
    try:
        kube.wait_pod(cluster, "static-a")
        refused(cluster, kube.checkpoint("bad-static", "static-a"), "StaticPod", "static-a")
    finally:
        cluster.on("a", f"rm {where}/static.json")


def test_pod_that_is_being_deleted(cluster: Cluster) -> None:
    deaf = pod("leaving", image="python", container={"command": ["python3", "-c", DEAF]})
    deaf["spec"]["terminationGracePeriodSeconds"] = 60
    kube.apply(cluster, deaf)
    kube.wait_pod(cluster, "leaving")
    cluster.kubectl("delete", "pod", "leaving", "--wait=false")
    refused(cluster, kube.checkpoint("bad-leaving", "leaving"), "PodDeleting", "leaving")
    cluster.kubectl("delete", "pod", "leaving", "--force", "--grace-period=0")


def test_pod_that_ended(cluster: Cluster) -> None:
    ended = pod("ended", container={"command": ["/counter", "--query"]})
    kube.apply(cluster, ended)
    until(lambda: kube.get(cluster, "pod", "ended")["status"].get("phase") == "Failed")
    refused(cluster, kube.checkpoint("bad-ended", "ended"), "PodNotRunning", "ended")


def test_somebody_runs_a_command_in_it(cluster: Cluster) -> None:
    command = [str(cluster.layout.state().programs + "/kubectl"), "exec", "steady", "--"]  # type: ignore[union-attr]
    session = subprocess.Popen(
        cluster.lan_command([*command, "/counter", "9999"]), env=cluster.client_environment()
    )
    try:
        time.sleep(1)
        made = kube.checkpoint("bad-exec", "steady")
        refused(cluster, made, "Refused", "steady", "(counter)", "kubectl exec")
    finally:
        cluster.on("a", "pkill -xf '/counter 9999'")
        session.wait(20)


def test_an_object_that_cannot_be_taken(cluster: Cluster) -> None:
    command = ["python3", "-c", USERFAULTFD]
    kube.apply(cluster, pod("uffd", image="python", container={"command": command}))
    kube.wait_pod(cluster, "uffd")
    until(lambda: cluster.kubectl("logs", "uffd"))
    made = kube.checkpoint("bad-uffd", "uffd", after="Stop")
    refused(cluster, made, "Refused", "userfaultfd", "task ")
    status = kube.get(cluster, "pod", "uffd")["status"]["containerStatuses"][0]
    assert "running" in status["state"]
    assert status["restartCount"] == 0
    remove(cluster, "pod", "uffd")


# ---- nodes ---------------------------------------------------------------------------------


def test_each_agent_acts_on_its_own_node_only(cluster: Cluster) -> None:
    other = Workload(cluster, "other").start("b")
    kube.apply(cluster, kube.checkpoint("of-b", "other"))
    done = kube.wait_ready(cluster, "checkpoint", "of-b")
    assert done["status"]["nodeName"] == done["metadata"]["labels"]["torpor.dev/node"] == "b"
    # One that is shown to the wrong agent, which must not touch it.
    made = kube.checkpoint("of-nobody", "other")
    made["metadata"]["labels"] = {"torpor.dev/node": "a"}
    kube.apply(cluster, made)
    kube.wait_ready(cluster, "checkpoint", "of-nobody")
    pods = json.loads(cluster.kubectl("get", "pods", "-n", kube.NAMESPACE, "-o", "json"))["items"]
    (agent,) = (
        each["metadata"]["name"]
        for each in pods
        if "-agent-" in each["metadata"]["name"] and each["spec"]["nodeName"] == "a"
    )
    log = cluster.kubectl("logs", "-n", kube.NAMESPACE, agent, "-c", "agent")
    assert "of-b" not in log
    assert "of-nobody" not in log
    other.check()
    other.remove()


def test_no_room_on_the_node(cluster: Cluster, stored: str) -> None:
    cluster.kubectl("cordon", "b")
    try:
        kube.apply(cluster, kube.restore("no-room", stored, node="b", pod="squeezed"))

        def unschedulable() -> Any:
            found = kube.condition(kube.get(cluster, "restores.torpor.dev", "no-room"), "Ready")
            return found and found["reason"] == "Unschedulable" and found

        assert "unschedulable" in until(unschedulable)["message"]
    finally:
        cluster.kubectl("uncordon", "b")
    kube.wait_ready(cluster, "restore", "no-room")
    remove(cluster, "pod", "squeezed")


def test_no_such_node(cluster: Cluster, stored: str) -> None:
    refused(cluster, kube.restore("bad-node", stored, node="z"), "NoNode", "'z'")


def test_pod_name_taken(cluster: Cluster, stored: str) -> None:
    refused(cluster, kube.restore("taken", stored, pod="steady"), "PodNameTaken", "steady")


# ---- checkpoints that are not there, or not yet ----------------------------------------------


@pytest.mark.usefixtures("stored")
def test_restore_of_a_checkpoint_that_is_not_ready_waits(
    cluster: Cluster, steady: Workload
) -> None:
    kube.apply(cluster, kube.restore("early", "late", pod="late"))

    def reason() -> str:
        found = kube.condition(kube.get(cluster, "restores.torpor.dev", "early"), "Ready")
        return str(found["reason"]) if found else ""

    until(lambda: reason() == "CheckpointNotReady")
    with held_store(cluster):
        kube.apply(cluster, kube.checkpoint("late", "steady"))
        until(lambda: begun(cluster, "late"))
        time.sleep(1)
        assert reason() == "CheckpointNotReady"
    kube.wait_ready(cluster, "restore", "early")
    back = Workload(cluster, "late", first=steady.first)
    back.check()
    back.remove()


def test_restore_of_a_failed_checkpoint(cluster: Cluster) -> None:
    kube.apply(cluster, kube.checkpoint("failed", "nobody"))
    settle(cluster, "checkpoint", "failed")
    refused(cluster, kube.restore("of-failed", "failed"), "CheckpointFailed", "nobody")


def test_restore_from_another_namespace(cluster: Cluster, stored: str) -> None:
    with suppress(BuildError):
        cluster.kubectl("create", "namespace", "elsewhere")
    made = kube.restore("foreign", stored)
    refused(
        cluster, made, "CheckpointNotFound", f"'{stored}'", "'elsewhere'", namespace="elsewhere"
    )


# ---- stores ------------------------------------------------------------------------------------


@contextmanager
def over_the_store(cluster: Cluster, options: str) -> Iterator[None]:
    """Another volume where the agent of node a has its store."""
    in_agent(cluster, "a", f"mount {options} {MOUNT}")
    try:
        yield
    finally:
        # A test may have taken it away already; the store itself stays.
        several = f"test $(grep -c {MOUNT} /proc/self/mountinfo) = 1"
        in_agent(cluster, "a", f"{several} || umount -l {MOUNT}")


@contextmanager
def held_store(cluster: Cluster) -> Iterator[None]:
    """Nobody may write to node a's store meanwhile."""
    command = f"nsenter -t $(pgrep -of {AGENT}) -m flock {MOUNT}/v1/lock cat"
    holder = cluster.popen_on("a", ["bash", "-c", f"echo; {command}"])
    assert holder.stdout
    assert holder.stdin
    holder.stdout.readline()
    time.sleep(0.3)
    try:
        yield
    finally:
        holder.stdin.close()
        assert holder.wait(20) == 0


def begun(cluster: Cluster, name: str) -> bool:
    """Whether an agent is at work; it opens the store before it looks at the pod."""
    return bool(kube.condition(kube.get(cluster, "checkpoints.torpor.dev", name), "Captured"))


@pytest.mark.parametrize("after", ["Continue", "Stop"])
def test_full_store(cluster: Cluster, after: str) -> None:
    name = f"bad-full-{after.lower()}"
    with over_the_store(cluster, "-t tmpfs -o size=2m tmpfs"):
        made = kube.checkpoint(name, "steady", after=after)
        refused(cluster, made, "StoreFailed", MOUNT, "No space left")


def test_read_only_store(cluster: Cluster) -> None:
    with over_the_store(cluster, "-t tmpfs -o ro tmpfs"):
        made = kube.checkpoint("bad-read-only", "steady")
        refused(cluster, made, "StoreFailed", MOUNT, "Read-only")


@pytest.mark.parametrize("after", ["Continue", "Stop"])
def test_store_that_goes_half_way(cluster: Cluster, after: str) -> None:
    name = f"bad-gone-{after.lower()}"
    with over_the_store(cluster, "-t tmpfs tmpfs"):
        in_agent(cluster, "a", f"mkdir {MOUNT}/v1 && touch {MOUNT}/v1/lock")
        with held_store(cluster):
            kube.apply(cluster, kube.checkpoint(name, "steady", after=after))
            until(lambda: begun(cluster, name))
            in_agent(cluster, "a", f"umount -l {MOUNT}")
        reason, message = settle(cluster, "checkpoint", name)
        assert reason == "StoreFailed", message
        assert MOUNT in message
        assert "remedy: " in message
    assert not list(cluster.shared.glob(f"torpor-store/v1/checkpoints/default/{name}-*"))


# ---- damage --------------------------------------------------------------------------------------


def flip_a_bit(cluster: Cluster, manifest: Path) -> None:
    """In the longest chunk, which is memory."""
    names = set(re.findall(r"\b[0-9a-f]{64}\b", manifest.read_text()))
    found = [cluster.shared / f"torpor-store/v1/chunks/{n[:2]}/{n}.zst" for n in names]
    chunk = max((path for path in found if path.exists()), key=lambda path: path.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0x10
    chunk.write_bytes(data)


def truncate(cluster: Cluster, manifest: Path) -> None:
    manifest.write_bytes(manifest.read_bytes()[: manifest.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "policy"),
    [(flip_a_bit, "Never"), (flip_a_bit, "Always"), (truncate, "Never")],
    ids=["bit-never", "bit-always", "truncated"],
)
def test_damaged_checkpoint(cluster: Cluster, damage: Any, policy: str) -> None:
    name = f"damaged-{damage.__name__.replace('_', '-')}-{policy.lower()}"
    workload = Workload(cluster, name).start(restartPolicy=policy)
    kube.apply(cluster, kube.checkpoint(name, name))
    done = kube.wait_ready(cluster, "checkpoint", name)
    workload.check()
    damage(cluster, cluster.shared / "torpor-store" / done["status"]["path"] / "manifest.json")
    kube.apply(cluster, kube.restore(name, name, node="b", pod=f"{name}-b"))
    reason, message = settle(cluster, "restore", name)
    assert reason == "BadImage", message
    assert "remedy: " in message

    def ended() -> Any:
        statuses = kube.get(cluster, "pod", f"{name}-b")["status"].get("containerStatuses", ({},))
        states = (statuses[0].get("state", {}), statuses[0].get("lastState", {}))
        return next((each["terminated"] for each in states if "terminated" in each), None)

    assert until(ended)["exitCode"] == 124
    log = cluster.kubectl("logs", f"{name}-b")
    assert "count" not in log.replace("counter", ""), f"it was started afresh: {log}"
    workload.check()
    remove(cluster, "pod", name, f"{name}-b")


# ---- containers that go -------------------------------------------------------------------------

KILL_WHEN_STOPPED = """
echo ready
while read pid name state rest < /proc/$1/stat && [ $state = S -o $state = R ]; do :; done
kill -9 $1
echo $state
"""


def test_container_that_exits_while_it_stands_still(cluster: Cluster) -> None:
    kube.apply(cluster, counter("mortal", heap_mib=64))
    kube.wait_pod(cluster, "mortal")
    pid = kube.container_pid(cluster, "mortal")
    words = ["bash", "-c", KILL_WHEN_STOPPED, "kill", str(pid)]
    killer = cluster.popen_on("a", words)
    assert killer.stdout
    assert killer.stdout.readline() == "ready\n", killer.communicate()
    kube.apply(cluster, kube.checkpoint("of-mortal", "mortal"))
    reason, message = settle(cluster, "checkpoint", "of-mortal")
    text, _ = killer.communicate(timeout=20)
    assert text.strip() in ("D", "t")  # frozen, or stopped by its tracer
    # Whole when the memory had been read before it died; else it says that the task is gone.
    assert reason in ("Completed", "Vanished", "PodNotRunning"), message
    assert reason == "Completed" or "remedy: " in message
    until(lambda: kube.get(cluster, "pod", "mortal")["status"]["phase"] == "Failed")


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.35, 0.5])
def test_container_that_exits_during_the_checkpoint(cluster: Cluster, delay_s: float) -> None:
    name = f"brief-{int(delay_s * 1000)}"
    kube.apply(cluster, counter(name, heap_mib=64))
    kube.wait_pod(cluster, name)
    pid = kube.container_pid(cluster, name)
    killer = cluster.popen_on("a", ["bash", "-c", f"read; sleep {delay_s}; kill -9 {pid}"])
    kube.apply(cluster, kube.checkpoint(f"of-{name}", name))
    killer.communicate("go\n", timeout=20)
    reason, message = settle(cluster, "checkpoint", f"of-{name}")
    assert reason in ("Completed", "Vanished", "PodNotRunning"), message
    assert reason == "Completed" or "remedy: " in message


# ---- what a user sees ---------------------------------------------------------------------------


def test_events_are_on_the_object_and_on_the_pod(cluster: Cluster, stored: str) -> None:
    def events(of: str, kind: str) -> set[str]:
        fields = f"involvedObject.name={of},involvedObject.kind={kind}"
        text = cluster.kubectl("get", "events", f"--field-selector={fields}", "-o", "json")
        return {each["reason"] for each in json.loads(text)["items"]}

    assert {"Assigned", "Completed"} <= events(stored, "Checkpoint")
    assert {"Assigned", "Completed"} <= events("steady", "Pod")


def test_printed_columns(cluster: Cluster, stored: str) -> None:
    heads, line = cluster.kubectl("get", "checkpoint", stored).splitlines()
    shown = dict(zip(heads.split(), line.split(), strict=True))
    assert shown["NAME"] == stored
    assert shown["POD"] == "steady"
    assert shown["NODE"] == "a"
    assert shown["READY"] == "True"
    assert shown["REASON"] == "Completed"


def test_kubectl_torpor(cluster: Cluster, steady: Workload) -> None:
    def torpor(*words: str) -> str:
        program = kube.ROOT / "build" / "venv" / "bin" / "kubectl-torpor"
        return cluster.run_in_lan([program, *words])

    assert torpor("checkpoint", "steady", "--name", "by-hand", "--wait", "-o", "name").strip()
    assert "by-hand" in torpor("ls")
    assert "steady" in torpor("inspect", "by-hand")
    torpor("restore", "by-hand", "--pod-name", "by-hand", "--node", "b", "--wait")
    back = Workload(cluster, "by-hand", first=steady.first)
    back.check()
    assert kube.get(cluster, "pod", "by-hand")["spec"]["nodeName"] == "b"
    back.remove()

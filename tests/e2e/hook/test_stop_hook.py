# SPDX-License-Identifier: Apache-2.0
"""A container asks for its checkpoint while it is being stopped, on a real containerd 2.x.

The whole way of the hook is real: kubelet, containerd, NRI, the static client in a distroless
image of a restricted pod, the service, the API server. Only who carries the Checkpoint out is
this test, so that it can hold it up and see what waits for it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from native.build import build_programs
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.hook.node import NAMESPACE, NODE, wait_for
from tests.e2e.images.build import name_of
from torpor.plugin.hook.nri import NriPlugin, NriSettings
from torpor.plugin.proto import nri_pb2 as pb

pytestmark = [pytest.mark.e2e, pytest.mark.root]

HOLD_S = 3.0


@pytest.fixture(scope="module")
def node_root(cluster: Cluster) -> Path:
    """The node's file system as this machine reaches it."""
    return Path(f"/proc/{cluster.node(NODE).pid()}/root")


@pytest.fixture(scope="module")
def hook(
    cluster: Cluster, node_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The hook's program, serving on the node; its log."""
    built = build_programs(tmp_path_factory.mktemp("programs"))
    client = next(path for path in built if path.name == "torpor-hook")
    log = tmp_path_factory.mktemp("hook") / "log"
    command = [
        *(sys.executable, "-m", "torpor.plugin.hook.main", "--client", str(client)),
        *("--directory", str(node_root / "run/torpor-hook"), "--node", NODE),
        *("--nri-socket", str(node_root / "run/nri/nri.sock")),
    ]
    environment = {**cluster.client_environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("wb") as stderr:
        process = subprocess.Popen(cluster.lan_command(command), env=environment, stderr=stderr)
    try:
        wait_for(lambda: "registered with containerd" in log.read_text() or process.poll())
        assert process.poll() is None, log.read_text()
        yield log
    finally:
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


class StopWatcher(NriPlugin):
    """Sees when the runtime tells plugins that a container stops."""

    EVENTS = (pb.STOP_CONTAINER,)

    def __init__(self, settings: NriSettings) -> None:
        super().__init__(settings)
        self.alive: dict[str, list[int]] = {}

    def on_stopped(self, pod: pb.PodSandbox, container: pb.Container) -> None:
        self.alive[pod.name] = tasks_of(container.id)


def tasks_of(container_id: str) -> list[int]:
    """Tasks of a container that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inside = container_id in (entry / "cgroup").read_text()
            if inside and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def start_pod(cluster: Cluster, name: str, *, annotated: bool, wait: str = "20s") -> str:
    """A restricted pod of a distroless image that asks when it is stopped; its container's id."""
    command = ["/.torpor-hook/torpor-hook", "checkpoint", "--wait", wait, "--reason", "stopping"]
    container = {
        "name": "main",
        "image": name_of("distroless"),
        "imagePullPolicy": "Never",
        "lifecycle": {"preStop": {"exec": {"command": command}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    annotations = {"torpor.dev/checkpoint-on-stop": "true"} if annotated else {}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": 30, "containers": [container]},
    }
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    cluster.kubectl("wait", "-n", NAMESPACE, "pod", name, "--for=condition=Ready", "--timeout=60s")
    (status,) = get(cluster, "pod", name)["status"]["containerStatuses"]
    return str(status["containerID"]).partition("://")[2]


def get(cluster: Cluster, kind: str, name: str) -> dict[str, Any]:
    text = cluster.kubectl("get", kind, "-n", NAMESPACE, name, "--ignore-not-found", "-o", "json")
    found: dict[str, Any] = json.loads(text or "{}")
    return found


def checkpoints(cluster: Cluster) -> list[dict[str, Any]]:
    text = cluster.kubectl("get", "checkpoints.torpor.dev", "-n", NAMESPACE, "-o", "json")
    items: list[dict[str, Any]] = json.loads(text)["items"]
    return items


def finish(cluster: Cluster, name: str, kind: str, reason: str) -> None:
    """Give a Checkpoint its end, as controller and agent would."""
    condition = {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": "",
        "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    cluster.kubectl(
        "patch", "checkpoint", "-n", NAMESPACE, name, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": {"conditions": [condition]}}),
    )  # fmt: skip


def test_stopping_waits_for_the_checkpoint(cluster: Cluster, node_root: Path, hook: Path) -> None:
    watcher = StopWatcher(
        NriSettings(socket=node_root / "run/nri/nri.sock", name="watch", index="60")
    )
    watcher.start()
    try:
        assert watcher.registered.wait(20)
        container = start_pod(cluster, "counter", annotated=True)
        uid = get(cluster, "pod", "counter")["metadata"]["uid"]
        cluster.kubectl("delete", "pod", "-n", NAMESPACE, "counter", "--wait=false")
        (made,) = wait_for(lambda: checkpoints(cluster))
        assert made["metadata"]["name"] == f"counter-stop-{uid[:8]}"
        assert made["spec"]["podRef"] == {"name": "counter", "uid": uid}
        assert made["metadata"]["labels"]["torpor.dev/requested-by"] == "hook"
        assert made["metadata"]["annotations"]["torpor.dev/reason"] == "stopping"

        time.sleep(HOLD_S)
        pod = get(cluster, "pod", "counter")
        assert "running" in pod["status"]["containerStatuses"][0]["state"]
        assert len(tasks_of(container)) == 2  # the service and the client that waits
        assert watcher.alive == {}

        finish(cluster, made["metadata"]["name"], "Ready", "Completed")
        wait_for(lambda: not get(cluster, "pod", "counter"))
        # Why the plugin does not act on StopContainer: nothing is left to checkpoint then.
        assert wait_for(lambda: watcher.alive) == {"counter": []}
    finally:
        watcher.stop()
    assert "counter/main]: the hook is mounted at /.torpor-hook" in hook.read_text()
    cluster.kubectl("delete", "checkpoints.torpor.dev", "-n", NAMESPACE, "--all", "--wait=false")


def test_a_failed_checkpoint_is_an_event_and_the_pod_stops(cluster: Cluster, hook: Path) -> None:
    start_pod(cluster, "failing", annotated=True)
    cluster.kubectl("delete", "pod", "-n", NAMESPACE, "failing", "--wait=false")
    (made,) = wait_for(
        lambda: [c for c in checkpoints(cluster) if c["spec"]["podRef"]["name"] == "failing"]
    )
    finish(cluster, made["metadata"]["name"], "Failed", "Refused")
    wait_for(lambda: not get(cluster, "pod", "failing"))
    events = cluster.kubectl(
        "get", "events", "-n", NAMESPACE, "--field-selector=reason=FailedPreStopHook",
        "-o", "jsonpath={.items[*].involvedObject.name}",
    )  # fmt: skip
    assert "failing" in events.split()


def test_without_the_annotation_there_is_no_way_in(cluster: Cluster, hook: Path) -> None:
    start_pod(cluster, "plain", annotated=False)
    cluster.kubectl("delete", "pod", "-n", NAMESPACE, "plain", "--wait=false")
    wait_for(lambda: not get(cluster, "pod", "plain"))
    assert [c for c in checkpoints(cluster) if c["spec"]["podRef"]["name"] == "plain"] == []
    assert "plain" not in hook.read_text()


def test_root_of_the_node_asks_by_name(cluster: Cluster, hook: Path) -> None:
    start_pod(cluster, "asked", annotated=False)
    waiting = cluster.popen_on(
        NODE,
        ["/run/torpor-hook/torpor-hook", "checkpoint", "--namespace", NAMESPACE, "--pod", "asked"],
    )
    (made,) = wait_for(
        lambda: [c for c in checkpoints(cluster) if c["spec"]["podRef"]["name"] == "asked"]
    )
    finish(cluster, made["metadata"]["name"], "Ready", "Completed")
    _, text = waiting.communicate(timeout=30)
    assert waiting.returncode == 0
    name = made["metadata"]["name"]
    assert f"checkpoint is ready: {NAMESPACE}/{name}: Completed" in text
    cluster.kubectl("delete", "pod", "-n", NAMESPACE, "asked", "--grace-period=1")


# An OCI runtime runs this; the container is none of a pod, so the service has to say no to it.
RUN_WITH_HOOK = """
rm -rf /tmp/bundle && mkdir -p /tmp/bundle/rootfs && cd /tmp/bundle
cp /run/torpor-hook/torpor-hook rootfs/ && runc spec
cat > edit.sed <<'END'
s|"sh"|"/torpor-hook", "health", "--socket", "/none"|
s|"terminal": true|"terminal": false|
s|"ociVersion"|"hooks": {"createRuntime": [{"path": "/run/torpor-hook/torpor-hook", \
"args": ["torpor-hook", "oci", "--wait", "5s", "--socket", "/run/torpor-hook/packet.sock"]}]}, \\
"ociVersion"|
END
sed -i -f edit.sed config.json
runc run by-hand 2>&1 || echo "ended with $?"
cd / && rm -rf /tmp/bundle
"""


def test_as_a_hook_of_an_oci_runtime(cluster: Cluster, hook: Path) -> None:
    text = cluster.on(NODE, RUN_WITH_HOOK)
    assert "ended with" in text, "a createRuntime hook that fails must fail the start"
    assert "container by-hand: no pod of this node has the container" in hook.read_text()

# SPDX-License-Identifier: Apache-2.0
"""What the tests of bad input and of dying parts share: their cluster, and an unharmed workload.

The agents keep their staging directory on the node, so that a new agent finds what a killed one
was doing.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.image.build import build_image
from deploy.image.process import BuildError
from deploy.image.progress import Progress
from tests.e2e import kube
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.images.build import archive, name_of

DIRECTORY = Path("/var/lib/torpor-bad")
STAGING = "/var/lib/torpor-staging"
MOUNT = "/var/lib/torpor/stores/default"
AGENT = "[b]in/torpor-agent"
CONTROLLER = "[b]in/torpor-controller"
Object = dict[str, Any]


@contextmanager
def brought_up() -> Iterator[Cluster]:
    """Two nodes with torpor; TORPOR_E2E_KEEP in the environment leaves them up."""
    progress = Progress()
    product = build_image(kube.ROOT / "Dockerfile", kube.ROOT, kube.IMAGE, progress)
    made = Cluster(DIRECTORY, progress)
    try:
        made.up(images=[product, archive("distroless", progress), archive("python", progress)])
        kube.install(made, f"agent.staging.hostPath={STAGING}")
        yield made
    finally:
        if not os.environ.get("TORPOR_E2E_KEEP"):
            made.down()


def pod(name: str, node: str | None = "a", image: str = "distroless", **spec: Any) -> Object:
    """A pod of a test image; ``container`` among the keywords changes its only container."""
    container = {
        "name": "main",
        "image": name_of(image),
        "imagePullPolicy": "Never",
        **spec.pop("container", {}),
    }
    placed = {"nodeName": node} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            **placed,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }


def counter(name: str, node: str = "a", *, heap_mib: int = 16, **spec: Any) -> Object:
    """A pod with the counter, with as much in its memory."""
    command = {"command": ["/counter", "8080", str(heap_mib)]}
    return pod(name, node, container=command | spec.pop("container", {}), **spec)


def remove(cluster: Cluster, kind: str, *names: str) -> None:
    """Delete objects, without waiting."""
    cluster.kubectl("delete", kind, *names, "--ignore-not-found", "--wait=false", "--now")


def until(what: Any, timeout_s: float = 60.0, every_s: float = 0.1) -> Any:
    """Ask until the answer is true, and give it."""
    deadline = time.monotonic() + timeout_s
    while True:
        if found := what():
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(every_s)


def ask(cluster: Cluster, name: str) -> Object:
    """What a counter says of itself."""
    text = cluster.kubectl("exec", name, "--", "/counter", "--query", timeout_s=30)
    answer: Object = json.loads(text)
    return answer


@dataclass(slots=True)
class Workload:
    """A running counter that nothing may harm."""

    cluster: Cluster
    name: str
    first: Object = field(default_factory=dict)

    def start(self, node: str = "a", **spec: Any) -> "Workload":
        """Create its pod and remember who it is."""
        kube.apply(self.cluster, counter(self.name, node, **spec))
        kube.wait_pod(self.cluster, self.name)
        self.first = until(self._asked)
        return self

    def _asked(self) -> Object | None:
        try:
            return ask(self.cluster, self.name)
        except BuildError:  # it does not listen yet
            return None

    def check(self) -> None:
        """It is the same process, its memory is whole, and it goes on."""
        now = ask(self.cluster, self.name)
        later = ask(self.cluster, self.name)
        assert now["identity"] == later["identity"] == self.first["identity"], "started afresh"
        assert (now["intact"], later["intact"]) == (True, True), "its memory is damaged"
        assert self.first["counter"] <= now["counter"] < later["counter"], "it stands still"
        self.first = later

    def remove(self) -> None:
        """Delete its pod."""
        remove(self.cluster, "pod", self.name)


def settle(
    cluster: Cluster, kind: str, name: str, *, namespace: str = "default", timeout_s: float = 90.0
) -> tuple[str, str]:
    """Wait for the end of an object; its reason and message. Checks that the end is clear."""
    thing = kube.wait_settled(cluster, kind, name, namespace=namespace, timeout_s=timeout_s)
    ready = kube.condition(thing, "Ready")
    failed = kube.condition(thing, "Failed")
    assert ready is not None
    if failed is None:
        assert ready["status"] == "True"
    else:
        assert ready["status"] == "False"
        assert failed["status"] == "True"
        assert (ready["reason"], ready["message"]) == (failed["reason"], failed["message"])
    return str(ready["reason"]), str(ready["message"])


def agent_pid(cluster: Cluster, node: str) -> str:
    """The agent's pid, as the node counts."""
    return cluster.on(node, f"pgrep -of '{AGENT}'").strip()


def in_agent(cluster: Cluster, node: str, command: str) -> str:
    """Run commands with the agent's mounts; its image has no mount, so PATH leads to the node's."""
    paths = "PATH=$PATH:/proc/1/root/usr/bin LD_LIBRARY_PATH=/proc/1/root/usr/lib/x86_64-linux-gnu"
    return cluster.on(node, f"{paths} nsenter -t $(pgrep -of '{AGENT}') -m sh -ec '{command}'")


def left_behind(cluster: Cluster, node: str) -> dict[str, str]:
    """What may not be there when no work goes on: staged data, frozen groups, stopped tasks."""
    look = {
        "staging": f"ls {STAGING}",
        "frozen": "find /sys/fs/cgroup/freezer -name freezer.state -exec grep -L THAWED {} +",
        "frozen v2": "grep -lx 1 $(find /sys/fs/cgroup -name cgroup.freeze)",
        "stopped": "grep -ls '^State:.[tT]' /proc/[0-9]*/status",
    }
    found = {what: cluster.on(node, f"({how}) 2>/dev/null || true") for what, how in look.items()}
    return {what: text for what, text in found.items() if text.strip()}

# SPDX-License-Identifier: Apache-2.0
"""The work bench of a test: pods of one namespace, and moving them with what that took."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e import kube
from tests.e2e.clients.pods import Object
from tests.e2e.cluster.cluster import Cluster

NAMESPACE = "work"
MOVES: list[str] = []
"""What each move took; the tests' summary shows it."""
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A move that is done."""

    pod: str
    node: str
    checkpoint: Object
    restore: Object
    checkpoint_s: float
    restore_s: float

    def line(self) -> str:
        """What it took, for the test's output."""
        status = self.checkpoint["status"]
        tasks = sum(int(each.get("tasks", 0)) for each in status["containers"])
        return (
            f"{self.pod} on {self.node}: {tasks} tasks, "
            f"{int(status['sizeBytes']) / MIB:.1f} MiB "
            f"({int(status['storedBytes']) / MIB:.1f} stored), paused {status['pause']}, "
            f"Checkpoint Ready after {self.checkpoint_s:.1f} s, "
            f"Restore Ready after {self.restore_s:.1f} s, away {self.restore['status']['downtime']}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Objects of the tests' namespace."""

    cluster: Cluster
    namespace: str = NAMESPACE

    def start(self, pod: Object) -> Object:
        """Apply a pod and wait until it is Ready."""
        kube.apply(self.cluster, pod, namespace=self.namespace)
        return kube.wait_pod(self.cluster, pod["metadata"]["name"], namespace=self.namespace)

    def get(self, kind: str, name: str) -> Object:
        """An object as the API server has it."""
        return kube.get(self.cluster, kind, name, self.namespace)

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=input)

    def run(self, pod: str, *argv: str, container: str = "main", input: str | None = None) -> str:
        """Kubectl exec."""
        flags = ["-i"] if input is not None else []
        return self.kubectl("exec", *flags, pod, "-c", container, "--", *argv, input=input)

    def read(self, pod: str, path: str | Path, container: str = "main") -> str:
        """A file of a container."""
        return self.run(pod, "cat", str(path), container=container)

    def address(self, pod: str) -> str:
        """A pod's address."""
        return str(self.get("pod", pod)["status"]["podIP"])

    def checkpoint(self, name: str, pod: str, **spec: Any) -> Object:
        """Apply a Checkpoint and wait until it is Ready."""
        kube.apply(self.cluster, kube.checkpoint(name, pod, **spec), namespace=self.namespace)
        return kube.wait_ready(self.cluster, "checkpoint", name, namespace=self.namespace)

    def restore(self, name: str, source: str, *, node: str, pod: str, **spec: Any) -> Object:
        """Apply a Restore, wait until it is Ready and its pod is."""
        thing = kube.restore(name, source, node=node, pod=pod, **spec)
        kube.apply(self.cluster, thing, namespace=self.namespace)
        done = kube.wait_ready(self.cluster, "restore", name, namespace=self.namespace)
        assert done["status"]["podName"] == pod
        assert kube.wait_pod(self.cluster, pod, namespace=self.namespace)["spec"]["nodeName"] == (
            node
        )
        return done

    def move(self, pod: str, *, to: str, name: str, after: str = "Stop") -> Moved:
        """Checkpoint a pod and restore it as `name` on node `to`."""
        begin_s = time.monotonic()
        checkpoint = self.checkpoint(f"{name}-cut", pod, after=after)
        middle_s = time.monotonic()
        restore = self.restore(f"{name}-back", f"{name}-cut", node=to, pod=name)
        moved = Moved(
            pod=name,
            node=to,
            checkpoint=checkpoint,
            restore=restore,
            checkpoint_s=middle_s - begin_s,
            restore_s=time.monotonic() - middle_s,
        )
        MOVES.append(moved.line())
        return moved

    def ask(self, pod: str, *argv: str, container: str = "main") -> Any:
        """What a command in a container answers in JSON."""
        return json.loads(self.run(pod, *argv, container=container))

    def forget(self, *pods: str) -> None:
        """Delete pods without waiting for their end."""
        self.kubectl("delete", "pod", "--wait=false", "--ignore-not-found", *pods)

# SPDX-License-Identifier: Apache-2.0
"""What the demo and the end-to-end tests ask of a cluster: objects, waiting, installing."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.image.process import BuildError
from tests.e2e.cluster.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/torpor:dev"
NAMESPACE = "torpor-system"
STORE = "/cluster/shared/torpor-store"
API_VERSION = "torpor.dev/v1alpha1"
Object = dict[str, Any]


def install(cluster: Cluster, *settings: str, timeout_s: int = 180) -> None:
    """`helm install` as the README tells it; waits until all of torpor is ready."""
    repository, tag = IMAGE.rsplit(":", 1)
    chosen = [
        f"image.repository={repository}",
        f"image.tag={tag}",
        "image.pullPolicy=Never",
        f"store.hostPath={STORE}",
        *settings,
    ]
    (cluster.shared / "torpor-store").mkdir(exist_ok=True)
    cluster.helm(
        "upgrade",
        "--install",
        "torpor",
        str(ROOT / "deploy" / "helm" / "torpor"),
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--set",
        ",".join(chosen),
        "--wait",
        "--timeout",
        f"{timeout_s}s",
        timeout_s=timeout_s + 30,
    )


def apply(cluster: Cluster, *objects: Object, namespace: str = "default") -> None:
    """kubectl apply."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=text)


def get(cluster: Cluster, kind: str, name: str, namespace: str = "default") -> Object:
    """kubectl get -o json."""
    found: Object = json.loads(cluster.kubectl("get", "-n", namespace, kind, name, "-o", "json"))
    return found


def checkpoint(name: str, pod: str, *, after: str = "Continue", **spec: Any) -> Object:
    """A Checkpoint."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {"podRef": {"name": pod}, "afterCheckpoint": after, **spec},
    }


def restore(
    name: str, source: str, *, node: str | None = None, pod: str | None = None, **spec: Any
) -> Object:
    """A Restore."""
    chosen = {"checkpointRef": {"name": source}, **spec}
    if node is not None:
        chosen["nodeName"] = node
    if pod is not None:
        chosen["podName"] = pod
    return {
        "apiVersion": API_VERSION,
        "kind": "Restore",
        "metadata": {"name": name},
        "spec": chosen,
    }


def condition(thing: Object, kind: str) -> Mapping[str, Any] | None:
    """A condition of an object, None when it is not there."""
    for one in thing.get("status", {}).get("conditions", ()):
        if one["type"] == kind:
            return dict(one)
    return None


def wait_ready(
    cluster: Cluster, kind: str, name: str, *, namespace: str = "default", timeout_s: float = 120.0
) -> Object:
    """Wait for Ready=True. Raises BuildError when the object failed, or in time."""
    thing = wait_settled(cluster, kind, name, namespace=namespace, timeout_s=timeout_s)
    ready = condition(thing, "Ready")
    if ready is None or ready["status"] != "True":
        raise BuildError(f"{kind} {name} is not ready: {ready} {condition(thing, 'Failed')}")
    return thing


def wait_settled(
    cluster: Cluster, kind: str, name: str, *, namespace: str = "default", timeout_s: float = 120.0
) -> Object:
    """Wait until an object is Ready or has failed for good."""
    deadline = time.monotonic() + timeout_s
    while True:
        thing = get(cluster, f"{kind}s.torpor.dev", name, namespace)
        ready, failed = condition(thing, "Ready"), condition(thing, "Failed")
        if (ready and ready["status"] == "True") or (failed and failed["status"] == "True"):
            return thing
        if time.monotonic() > deadline:
            raise BuildError(
                f"{kind} {name} neither ready nor failed after {timeout_s:.0f} s: "
                f"{json.dumps(thing.get('status'), indent=1)}"
            )
        time.sleep(0.3)


def wait_pod(
    cluster: Cluster, name: str, *, namespace: str = "default", timeout_s: float = 120.0
) -> Object:
    """Wait for a pod's Ready condition."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            pod = get(cluster, "pod", name, namespace)
        except BuildError:
            pod = {}
        ready = condition(pod, "Ready")
        if ready and ready["status"] == "True":
            return pod
        if time.monotonic() > deadline:
            raise BuildError(f"pod {name} is not ready: {json.dumps(pod.get('status'), indent=1)}")
        time.sleep(0.3)


def container_pid(
    cluster: Cluster, pod: str, container: int = 0, namespace: str = "default"
) -> int:
    """Pid of a container's init on its node."""
    found = get(cluster, "pod", pod, namespace)
    identity = found["status"]["containerStatuses"][container]["containerID"].split("//")[1]
    script = (
        f"for p in /proc/[0-9]*; do grep -q {identity} $p/cgroup 2>/dev/null && "
        "grep -q 'NSpid.*\\s1$' $p/status && basename $p; done; true"
    )
    text = cluster.on(found["spec"]["nodeName"], ["bash", "-c", script])
    return int(text.split()[0])

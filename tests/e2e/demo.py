# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a pod moves from one node of a real cluster to the other, with a proof.

    demo.py [--keep] [--dir DIR]

Builds what is missing (cached outside the checkout), brings the cluster up, installs the chart,
starts a pod whose state is in its memory only, checkpoints it with `kubectl apply`, restores it
on the other node, asks it who it is, and takes everything down again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from deploy.image.build import build_image  # noqa: E402
from deploy.image.process import BuildError  # noqa: E402
from deploy.image.progress import Progress  # noqa: E402
from tests.e2e import kube  # noqa: E402
from tests.e2e.cluster.cluster import Cluster  # noqa: E402
from tests.e2e.images import build as images  # noqa: E402

DIRECTORY = Path("/var/lib/torpor-demo")
POD = {
    "apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": "counter", "labels": {"app": "counter"}},
    "spec": {
        "nodeName": "a", "restartPolicy": "Never", "terminationGracePeriodSeconds": 2,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000,
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "counter", "image": images.name_of("distroless"), "imagePullPolicy": "Never",
            "securityContext": {"allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"]}},
            "resources": {"limits": {"memory": "128Mi", "cpu": "500m"}},
        }],
    },
}  # fmt: skip


class ProofError(Exception):
    """The moved pod is not the old one."""


def main() -> int:
    """Run the demo and return its exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--keep", action="store_true", help="leave the cluster up at the end")
    options.add_argument("--dir", type=Path, default=DIRECTORY)
    chosen = options.parse_args()
    begin, progress = time.monotonic(), Progress()
    cluster = Cluster(chosen.dir, progress)
    try:
        bring_up(cluster, progress)
        try:
            move(cluster, progress)
        finally:
            if not chosen.keep:
                cluster.down()
    except (BuildError, ProofError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except BaseException:
        if not chosen.keep:
            cluster.down()
        raise
    print(
        f"\nThe demo took {time.monotonic() - begin:.0f} s. "
        + ("The cluster is still up." if chosen.keep else "Everything is torn down again.")
    )
    return 0


def bring_up(cluster: Cluster, progress: Progress) -> None:
    """The cluster with torpor installed."""
    progress.say("building torpor's image and the test image")
    product = build_image(ROOT / "Dockerfile", ROOT, kube.IMAGE, progress)
    counter = images.archive("distroless", progress)
    cluster.up(images=[product, counter])
    progress.say("installing torpor by its Helm chart")
    kube.install(cluster)
    progress.say("torpor is ready on both nodes")


def move(cluster: Cluster, progress: Progress) -> None:
    """Checkpoint on a, restore on b, compare."""
    kube.apply(cluster, POD)
    kube.wait_pod(cluster, "counter")
    time.sleep(3)
    before = ask(cluster, "counter")
    progress.say(f"pod counter on node a: {show(before)}")
    kube.apply(cluster, kube.checkpoint("counter-1", "counter", after="Stop"))
    done = kube.wait_ready(cluster, "checkpoint", "counter-1")
    status = done["status"]
    progress.say(
        f"Checkpoint Ready: {int(status['sizeBytes']) / 2**20:.1f} MiB, pod paused for "
        f"{status['pause']}"
    )
    kube.apply(cluster, kube.restore("counter-b", "counter-1", node="b", pod="counter-moved"))
    restored = kube.wait_ready(cluster, "restore", "counter-b")
    name = restored["status"]["podName"]
    node = kube.get(cluster, "pod", name)["spec"]["nodeName"]
    progress.say(f"Restore Ready: pod {name} on node {node}")
    after = ask(cluster, name)
    time.sleep(1)
    later = ask(cluster, name)
    prove(before, after, later, node)
    logs = cluster.kubectl("logs", name)
    code = end(cluster, name)
    print(f"""
Proof
  before, node a   {show(before)}
  after,  node {node}   {show(after)}
  a second later   {show(later)}
  same identity    {before["identity"] == after["identity"]}
  counter goes on  {before["counter"]} -> {after["counter"]} -> {later["counter"]}
  checksum equal   {before["checksum"] == after["checksum"]}, memory intact: {after["intact"]}
  pid inside       {after["pid"]} (it is its container's init)
  kubectl exec     works (that is how the figures above were asked for)
  kubectl logs     {len(logs.splitlines())} lines, last: {logs.splitlines()[-1]}
  exit code        {code} after a KILL on its node (the runtime saw its init end)""")


def ask(cluster: Cluster, pod: str) -> dict[str, Any]:
    """What the counter says of itself, by kubectl exec."""
    answer: dict[str, Any] = json.loads(cluster.kubectl("exec", pod, "--", "/counter", "--query"))
    return answer


def show(state: dict[str, Any]) -> str:
    """One line of a state."""
    return (
        f"counter {state['counter']}, identity {state['identity']}, "
        f"checksum {state['checksum']}, pid {state['pid']}"
    )


def prove(before: dict[str, Any], after: dict[str, Any], later: dict[str, Any], node: str) -> None:
    """Raise when the moved pod is not the old one."""
    facts = {
        "it runs on node b": node == "b",
        "the identity is the same": before["identity"] == after["identity"],
        "the counter went on": before["counter"] <= after["counter"] < later["counter"],
        "the checksum is the same": before["checksum"] == after["checksum"],
        "its memory is intact": bool(after["intact"] and later["intact"]),
        "it is pid 1": after["pid"] == 1,
    }
    wrong = [text for text, true in facts.items() if not true]
    if wrong:
        raise ProofError(f"not true: {', '.join(wrong)} ({before} {after} {later})")


def end(cluster: Cluster, pod: str) -> int:
    """Kill the pod's init from its node and return the exit code that Kubernetes reports."""
    from tests.e2e.kube import container_pid

    pid = container_pid(cluster, pod)
    node = kube.get(cluster, "pod", pod)["spec"]["nodeName"]
    cluster.on(node, ["kill", "-KILL", str(pid)])
    for _ in range(100):
        state = kube.get(cluster, "pod", pod)["status"]["containerStatuses"][0]["state"]
        if "terminated" in state:
            return int(state["terminated"]["exitCode"])
        time.sleep(0.2)
    raise ProofError("the container's end was not noticed")


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Deleting an annotated pod saves it, with nobody standing in for any part of torpor.

The chart runs with the node's NRI socket: the agent puts the hook into the pod, the pod's preStop
command asks for the checkpoint, agent and controller carry it out, and the pod can be restored.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.image.build import build_image
from deploy.image.progress import Progress
from tests.e2e import kube
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.hook.node import NAMESPACE, NODE, wait_for
from tests.e2e.hook.test_stop_hook import checkpoints, get, start_pod

pytestmark = [pytest.mark.e2e, pytest.mark.root]


@pytest.fixture(scope="module")
def torpor(cluster: Cluster) -> Iterator[None]:
    """The product on the node, with its NRI socket."""
    product = build_image(kube.ROOT / "Dockerfile", kube.ROOT, kube.IMAGE, Progress())
    cluster.import_image(product)
    kube.install(cluster, "agent.hook.nriSocket=/run/nri/nri.sock", "controller.replicas=1")
    wait_for(lambda: "registered with containerd" in agent_log(cluster))
    yield
    cluster.helm("uninstall", "torpor", "-n", kube.NAMESPACE, "--wait")


def agent_log(cluster: Cluster) -> str:
    selector = ("-l", "app.kubernetes.io/component=agent")
    return cluster.kubectl("logs", "-n", kube.NAMESPACE, *selector, "-c", "agent", "--tail=-1")


def ask(cluster: Cluster, name: str) -> dict[str, Any]:
    text = cluster.kubectl("exec", "-n", NAMESPACE, name, "--", "/counter", "--query")
    found: dict[str, Any] = json.loads(text)
    return found


def stopped(cluster: Cluster, name: str) -> str:
    """Delete a pod; the Checkpoint that it left, which is Ready."""
    cluster.kubectl("delete", "pod", "-n", NAMESPACE, name, "--wait=false")
    (made,) = wait_for(
        lambda: [c for c in checkpoints(cluster) if c["spec"]["podRef"]["name"] == name]
    )
    checkpoint = str(made["metadata"]["name"])
    kube.wait_ready(cluster, "checkpoint", checkpoint, namespace=NAMESPACE)
    wait_for(lambda: not get(cluster, "pod", name))
    return checkpoint


def test_a_deleted_pod_comes_back(cluster: Cluster, torpor: None) -> None:
    start_pod(cluster, "saved", annotated=True)
    before = ask(cluster, "saved")
    checkpoint = stopped(cluster, "saved")
    made = kube.restore("back", checkpoint, node=NODE, pod="saved-again")
    kube.apply(cluster, made, namespace=NAMESPACE)
    kube.wait_ready(cluster, "restore", "back", namespace=NAMESPACE)
    after = ask(cluster, "saved-again")
    assert after["identity"] == before["identity"]
    assert after["intact"]
    assert before["counter"] < after["counter"] < ask(cluster, "saved-again")["counter"]
    # It is as it was in this, too: its next stop leaves a checkpoint again.
    stopped(cluster, "saved-again")

# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a pod, and what a restored pod looks like."""

import copy

import pytest

from torpor.plugin.api import codec
from torpor.plugin.api.common import RESTORE_LABEL, RESTORE_UID_ANNOTATION
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.podrecord import record, volume_name
from torpor.plugin.api.v1alpha1 import Checkpoint, Restore
from torpor.plugin.controller.podtemplate import HelperImage, build, pod_name

SOURCE: JsonObject = {
    "metadata": {
        "name": "web-0",
        "namespace": "shop",
        "uid": "old-uid",
        "labels": {"app": "web", "pod-template-hash": "abc"},
        "annotations": {
            "team": "a",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "torpor.dev/checkpoint": "older",
            "torpor.dev/checkpoint-on-stop": "true",
        },
        "ownerReferences": [{"kind": "ReplicaSet", "name": "web"}],
    },
    "spec": {
        "nodeName": "node-a",
        "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
        "serviceAccount": "web",
        "serviceAccountName": "web",
        "restartPolicy": "Always",
        "securityContext": {"runAsUser": 1000, "runAsNonRoot": True},
        "tolerations": [
            {
                "key": "node.kubernetes.io/not-ready",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            },
            {"key": "dedicated", "operator": "Exists"},
        ],
        "initContainers": [
            {
                "name": "setup",
                "image": "setup:1",
                "volumeMounts": [{"name": "kube-api-access-x1", "mountPath": "/t"}],
            }
        ],
        "containers": [
            {
                "name": "web",
                "image": "nginx:1",
                "command": ["nginx"],
                "args": ["-g"],
                "env": [{"name": "A", "value": "1"}],
                "livenessProbe": {"httpGet": {"port": 80}},
                "startupProbe": {"httpGet": {"port": 80}},
                "lifecycle": {"postStart": {"exec": {"command": ["x"]}}},
                "volumeMounts": [
                    {"name": "data", "mountPath": "/data"},
                    {"name": "kube-api-access-x1", "mountPath": "/var/run/secrets/token"},
                ],
            },
            {"name": "side", "image": "side:1", "command": ["side"]},
        ],
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "kube-api-access-x1", "projected": {"sources": []}},
        ],
    },
    "status": {"phase": "Running"},
}
HELPER = HelperImage(name="localhost/torpor:dev", pull_policy="Never")
DIGEST = "docker.io/library/nginx@sha256:" + "a" * 64


def checkpoint(
    pod: JsonObject = SOURCE, containers: tuple[str, ...] = ("web", "side")
) -> Checkpoint:
    status = {
        "podTemplate": record(pod),
        "containers": [{"name": n, "imageID": DIGEST} for n in containers],
    }
    data = {
        "metadata": {"name": "ck", "namespace": "shop"},
        "spec": {"podRef": {"name": "web-0"}},
        "status": status,
    }
    return codec.decode(Checkpoint, data)


def restore(**spec: object) -> Restore:
    metadata = {"name": "r", "namespace": "shop", "uid": "restore-uid", "generation": 1}
    return codec.decode(
        Restore, {"metadata": metadata, "spec": {"checkpointRef": {"name": "ck"}, **spec}}
    )


def test_record_keeps_the_pod_and_drops_its_instance() -> None:
    before = copy.deepcopy(SOURCE)
    template = record(SOURCE)
    assert before == SOURCE, "record changed the pod it was given"
    spec = template["spec"]
    assert template["labels"] == {"app": "web"}
    assert template["annotations"] == {"team": "a", "torpor.dev/checkpoint-on-stop": "true"}
    assert not {"nodeName", "priority", "preemptionPolicy", "serviceAccount"} & spec.keys()
    assert spec["serviceAccountName"] == "web"
    assert [t["key"] for t in spec["tolerations"]] == ["dedicated"]
    assert [v["name"] for v in spec["volumes"]] == ["data"]
    assert [m["name"] for m in spec["containers"][0]["volumeMounts"]] == ["data"]
    assert "volumeMounts" not in spec["initContainers"][0]


def test_record_drops_the_pin_of_a_daemonset() -> None:
    pod = copy.deepcopy(SOURCE)
    field = {"key": "metadata.name", "operator": "In", "values": ["node-a"]}
    required = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    pod["spec"]["affinity"] = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
    }
    assert "affinity" not in record(pod)["spec"]


def test_containers_start_as_placeholders() -> None:
    pod = build(checkpoint(), restore(), HELPER)
    web, side = pod["spec"]["containers"]
    for container in (web, side):
        assert container["command"] == ["/.torpor/placeholder"]
        assert "args" not in container
        assert container["startupProbe"]["exec"]["command"] == ["/.torpor/placeholder", "ready"]
        assert container["image"] == DIGEST
        assert {"name": volume_name(container["name"]), "mountPath": "/.torpor"} in container[
            "volumeMounts"
        ]
    assert web["livenessProbe"] == {"httpGet": {"port": 80}}
    assert "lifecycle" not in web
    assert web["env"] == [{"name": "A", "value": "1"}]
    assert "nodeName" not in pod["spec"]
    assert pod["spec"]["restartPolicy"] == "Always"


def test_a_restored_pod_restores_again() -> None:
    first = build(checkpoint(), restore(), HELPER)
    again = build(checkpoint(first), restore(), HELPER)
    spec = again["spec"]
    names = [volume["name"] for volume in spec["volumes"]]
    assert len(names) == len(set(names)) == 3
    assert [c["name"] for c in spec["initContainers"]] == ["torpor-placeholder"]
    for container in spec["containers"]:
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert paths.count("/.torpor") == 1
    assert spec["containers"] == first["spec"]["containers"]


def test_only_checkpointed_containers_are_held() -> None:
    pod = build(checkpoint(containers=("web",)), restore(), HELPER)
    assert pod["spec"]["containers"][1]["command"] == ["side"]
    assert len(pod["spec"]["initContainers"][0]["volumeMounts"]) == 1


def test_init_container_meets_restricted() -> None:
    (init,) = build(checkpoint(), restore(), HELPER)["spec"]["initContainers"]
    security = init["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 1000
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert init["command"] == [
        "torpor-placeholder",
        "install",
        "/torpor/0/placeholder",
        "/torpor/1/placeholder",
    ]
    assert (init["image"], init["imagePullPolicy"]) == ("localhost/torpor:dev", "Never")
    assert "resources" not in init, "a BestEffort pod must stay BestEffort"


@pytest.mark.parametrize("root", [{"runAsUser": 0}, {}])
def test_init_container_is_never_root(root: JsonObject) -> None:
    pod = copy.deepcopy(SOURCE)
    pod["spec"]["securityContext"] = root
    (init,) = build(checkpoint(pod), restore(), HELPER)["spec"]["initContainers"]
    assert init["securityContext"]["runAsUser"] == 65532


def test_guaranteed_pod_stays_guaranteed() -> None:
    pod = copy.deepcopy(SOURCE)
    both = {"cpu": "1", "memory": "1Gi"}
    for container in pod["spec"]["containers"]:
        container["resources"] = {"requests": both, "limits": both}
    (init,) = build(checkpoint(pod), restore(), HELPER)["spec"]["initContainers"]
    assert init["resources"]["requests"] == init["resources"]["limits"]


def test_images_loaded_by_hand_keep_their_name() -> None:
    pod = copy.deepcopy(SOURCE)
    pod["spec"]["containers"][0]["imagePullPolicy"] = "Never"
    built = build(checkpoint(pod), restore(), HELPER)
    assert built["spec"]["containers"][0]["image"] == "nginx:1"


def test_metadata_and_identity() -> None:
    changes = {"labels": {"app": "copy", RESTORE_LABEL: "forged"}, "annotations": {"x": "y"}}
    metadata = build(checkpoint(), restore(metadata=changes), HELPER)["metadata"]
    assert metadata["labels"] == {"app": "copy", RESTORE_LABEL: "r"}
    assert metadata["annotations"][RESTORE_UID_ANNOTATION] == "restore-uid"
    assert metadata["annotations"]["x"] == "y"
    assert "ownerReferences" not in metadata
    assert "uid" not in metadata


def test_pod_name_depends_on_the_restore_only() -> None:
    name = pod_name(checkpoint(), restore())
    assert name == pod_name(checkpoint(), restore())
    assert name.startswith("web-0-")
    assert len(name) <= 63
    assert pod_name(checkpoint(), restore(podName="mine")) == "mine"


def test_node_is_asked_of_the_scheduler() -> None:
    pod = build(checkpoint(), restore(nodeName="node-b"), HELPER)
    node = pod["spec"]["affinity"]["nodeAffinity"]
    (term,) = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"][0]["values"] == ["node-b"]
    assert "nodeName" not in pod["spec"]
    selected = build(checkpoint(), restore(nodeSelector={"disk": "ssd"}), HELPER)
    assert selected["spec"]["nodeSelector"] == {"disk": "ssd"}

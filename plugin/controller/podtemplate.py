# SPDX-License-Identifier: Apache-2.0
"""The pod that a restore creates from what its checkpoint recorded.

The new pod is an ordinary one. Its checkpointed containers start the placeholder, which the agent
takes over; a startup probe that asks the placeholder holds back the other probes until then.
"""

import copy
import hashlib
from dataclasses import dataclass

from torpor.plugin.api.common import (
    CHECKPOINT_ANNOTATION,
    RESTORE_LABEL,
    RESTORE_UID_ANNOTATION,
)
from torpor.plugin.api.fields import LABEL_LIMIT, JsonObject
from torpor.plugin.api.podrecord import INIT_NAME, PLACEHOLDER_DIR, volume_name
from torpor.plugin.api.v1alpha1 import Checkpoint, Restore

PLACEHOLDER = f"{PLACEHOLDER_DIR}/placeholder"
INIT_UID = 65532
STARTUP_FAILURES = 3600

_HELPER_RESOURCES = {"cpu": "50m", "memory": "64Mi"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperImage:
    """The image with the placeholder: torpor's own."""

    name: str
    pull_policy: str = "IfNotPresent"


def pod_name(checkpoint: Checkpoint, restore: Restore) -> str:
    """Name of the new pod: as asked, or the old one's with a digest of the Restore."""
    if restore.spec.pod_name:
        return restore.spec.pod_name
    digest = hashlib.sha256(f"{restore.metadata.uid}/{restore.metadata.name}".encode()).hexdigest()
    room = LABEL_LIMIT - 7
    return f"{checkpoint.spec.pod_ref.name[:room].rstrip('-.')}-{digest[:6]}"


def build(checkpoint: Checkpoint, restore: Restore, helper: HelperImage) -> JsonObject:
    """The pod that a restore creates."""
    template = copy.deepcopy(checkpoint.status.pod_template or {})
    spec: JsonObject = template.get("spec") or {}
    taken = {container.name: container for container in checkpoint.status.containers}
    names = [str(c["name"]) for c in spec["containers"] if c["name"] in taken]
    qos = _qos(spec)
    for container in spec["containers"]:
        if container["name"] in taken:
            _hold(container)
            _pin_image(container, taken[container["name"]].image_id or "")
    spec["initContainers"] = [_init_container(names, helper, spec, qos)]
    spec["volumes"] = [*(spec.get("volumes") or []), *map(_volume, names)]
    _place(spec, restore)
    changes = restore.spec.metadata
    metadata = {
        "name": pod_name(checkpoint, restore),
        "namespace": restore.metadata.namespace,
        "labels": {
            **template.get("labels", {}),
            **changes.labels,
            RESTORE_LABEL: restore.metadata.name,
        },
        "annotations": {
            **template.get("annotations", {}),
            **changes.annotations,
            RESTORE_UID_ANNOTATION: restore.metadata.uid,
            CHECKPOINT_ANNOTATION: checkpoint.metadata.name,
        },
    }
    return {"metadata": metadata, "spec": spec}


def is_pod_of(pod: JsonObject, restore: Restore) -> bool:
    """True for the pod that this very Restore created."""
    annotations = pod["metadata"].get("annotations") or {}
    return bool(annotations.get(RESTORE_UID_ANNOTATION) == restore.metadata.uid)


def _hold(container: JsonObject) -> None:
    """Let a container start as a placeholder, unprobed until it is restored."""
    container["command"] = [PLACEHOLDER]
    container.pop("args", None)
    container["startupProbe"] = {
        "exec": {"command": [PLACEHOLDER, "ready"]},
        "periodSeconds": 1,
        "timeoutSeconds": 5,
        "failureThreshold": STARTUP_FAILURES,
    }
    lifecycle = container.get("lifecycle") or {}
    lifecycle.pop("postStart", None)
    if not lifecycle:
        container.pop("lifecycle", None)
    mounts = container.setdefault("volumeMounts", [])
    mounts.append({"name": volume_name(container["name"]), "mountPath": PLACEHOLDER_DIR})


def _pin_image(container: JsonObject, image_id: str) -> None:
    """Name the image by the digest that ran.

    Images that are loaded into nodes by hand (pull policy Never) are known there by their name
    only; the agent compares what runs then.
    """
    reference = image_id.removeprefix("docker-pullable://")
    if "@sha256:" in reference and container.get("imagePullPolicy") != "Never":
        container["image"] = reference


def _volume(container: str) -> JsonObject:
    return {"name": volume_name(container), "emptyDir": {"sizeLimit": "4Mi"}}


def _init_container(
    names: list[str], helper: HelperImage, spec: JsonObject, qos: str
) -> JsonObject:
    """The container that copies the placeholder; it meets Pod Security `restricted`."""
    user = (spec.get("securityContext") or {}).get("runAsUser") or INIT_UID
    mounts = [
        {"name": volume_name(name), "mountPath": f"/torpor/{index}"}
        for index, name in enumerate(names)
    ]
    init: JsonObject = {
        "name": INIT_NAME,
        "image": helper.name,
        "imagePullPolicy": helper.pull_policy,
        "command": [
            "torpor-placeholder",
            "install",
            *(f"{mount['mountPath']}/placeholder" for mount in mounts),
        ],
        "volumeMounts": mounts,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if qos != "BestEffort":
        init["resources"] = {"requests": _HELPER_RESOURCES, "limits": _HELPER_RESOURCES}
    return init


def _qos(spec: JsonObject) -> str:
    """BestEffort or not: one more container must not move the pod to another class.

    Small limits equal to requests keep a Guaranteed pod Guaranteed; any resources at all would
    make a BestEffort pod Burstable (pkg/apis/core/v1/helper/qos, v1.34).
    """
    for container in spec["containers"]:
        resources = container.get("resources") or {}
        if resources.get("requests") or resources.get("limits"):
            return "NotBestEffort"
    return "BestEffort"


def _place(spec: JsonObject, restore: Restore) -> None:
    """Say where the pod may run; the scheduler still checks that there is room."""
    if restore.spec.node_selector:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **restore.spec.node_selector}
    if not restore.spec.node_name:
        return
    field = {"key": "metadata.name", "operator": "In", "values": [restore.spec.node_name]}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in required.setdefault("nodeSelectorTerms", [{}]):
        term.setdefault("matchFields", []).append(field)

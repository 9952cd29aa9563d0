# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint records of its pod: all that a new pod needs, nothing of this one instance."""

import copy
import hashlib
from collections.abc import Iterable
from typing import Any

from torpor.plugin.api.common import GROUP, ON_STOP_ANNOTATION, RESTORE_LABEL
from torpor.plugin.api.fields import JsonObject

PLACEHOLDER_DIR = "/.torpor"
INIT_NAME = "torpor-placeholder"

# Set by the API server, by admission or by the node, and set anew for the new pod.
_SPEC_DROPPED = (
    "nodeName",
    "ephemeralContainers",
    "priority",
    "preemptionPolicy",
    "overhead",
    "serviceAccount",
    "schedulingGates",
)
# Set by workload controllers; with them the old owner would take the new pod for its own.
_LABELS_DROPPED = frozenset(
    {
        "pod-template-hash",
        "pod-template-generation",
        "controller-revision-hash",
        "controller-uid",
        "job-name",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        RESTORE_LABEL,
    }
)
_ANNOTATION_PREFIXES_DROPPED = (
    f"{GROUP}/",
    "kubectl.kubernetes.io/",
    "kubernetes.io/config.",
    "kubernetes.io/limit-ranger",
    "cni.projectcalico.org/",
    "k8s.v1.cni.cncf.io/network-status",
    "k8s.ovn.org/",
)
_DEFAULT_TOLERATIONS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_API_ACCESS = "kube-api-access-"


def record(pod: JsonObject) -> JsonObject:
    """Labels, annotations and spec of a pod without what belongs to this one pod only."""
    metadata = pod["metadata"]
    spec = copy.deepcopy(pod["spec"])
    for name in _SPEC_DROPPED:
        spec.pop(name, None)
    spec["tolerations"] = [t for t in spec.get("tolerations", []) if not _is_default(t)]
    _drop_api_access(spec)
    _drop_placeholders(spec)
    _drop_node_pin(spec)
    labels = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    return {
        "labels": {k: v for k, v in labels.items() if k not in _LABELS_DROPPED},
        "annotations": {
            k: v
            for k, v in annotations.items()
            if k == ON_STOP_ANNOTATION or not k.startswith(_ANNOTATION_PREFIXES_DROPPED)
        },
        "spec": {key: value for key, value in spec.items() if value not in ([], {})},
    }


def volume_name(container: str) -> str:
    """Name of the volume that brings the placeholder into a container."""
    return "torpor-" + hashlib.sha256(container.encode()).hexdigest()[:10]


def _is_default(toleration: JsonObject) -> bool:
    return (
        toleration.get("key") in _DEFAULT_TOLERATIONS
        and toleration.get("tolerationSeconds") == 300
        and toleration.get("operator") == "Exists"
    )


def _drop_api_access(spec: JsonObject) -> None:
    """Take out the token volume that admission puts in; the new pod gets a fresh one."""
    volumes = spec.get("volumes") or []
    tokens = {v["name"] for v in volumes if v["name"].startswith(_API_ACCESS) and "projected" in v}
    spec["volumes"] = [v for v in volumes if v["name"] not in tokens]
    for container in _containers(spec):
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [m for m in mounts if m["name"] not in tokens]
        if not container["volumeMounts"]:
            del container["volumeMounts"]


def _drop_placeholders(spec: JsonObject) -> None:
    """Take out what an earlier restore put in: the next one puts in its own."""
    names = {volume_name(str(container["name"])) for container in spec["containers"]}
    spec["volumes"] = [v for v in spec.get("volumes") or [] if v["name"] not in names]
    init = spec.get("initContainers") or []
    spec["initContainers"] = [c for c in init if c["name"] != INIT_NAME]
    for container in spec["containers"]:
        mounts = container.get("volumeMounts") or []
        kept = [m for m in mounts if m["mountPath"] != PLACEHOLDER_DIR]
        container.pop("volumeMounts", None)
        if kept:
            container["volumeMounts"] = kept


def _drop_node_pin(spec: JsonObject) -> None:
    """Take out an affinity for one node by name, which a DaemonSet gives its pods."""
    for term in _node_terms(spec):
        fields = [f for f in term.get("matchFields") or [] if f.get("key") != "metadata.name"]
        term.pop("matchFields", None)
        if fields:
            term["matchFields"] = fields
    node = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    if not any(_node_terms(spec)):
        node.pop("requiredDuringSchedulingIgnoredDuringExecution", None)
    if "affinity" in spec and not node:
        spec["affinity"].pop("nodeAffinity", None)
    if not spec.get("affinity"):
        spec.pop("affinity", None)


def _containers(spec: JsonObject) -> Iterable[JsonObject]:
    yield from spec.get("initContainers") or []
    yield from spec["containers"]


def _node_terms(spec: JsonObject) -> list[JsonObject]:
    found: Any = spec
    for step in ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"):
        found = (found or {}).get(step)
    return list((found or {}).get("nodeSelectorTerms") or [])

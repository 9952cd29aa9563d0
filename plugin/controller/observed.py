# SPDX-License-Identifier: Apache-2.0
"""Pods and nodes as the decisions need to see them."""

from dataclasses import dataclass
from datetime import datetime

from torpor.plugin.api.codec import parse_time
from torpor.plugin.api.fields import JsonObject

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node: whether it is ready, and since when that is so."""

    name: str
    ready: bool
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod, read from its object."""

    name: str
    uid: str
    node_name: str
    phase: str
    deleting: bool
    body: JsonObject

    @property
    def spec(self) -> JsonObject:
        """Its spec."""
        spec: JsonObject = self.body["spec"]
        return spec

    @property
    def container_names(self) -> tuple[str, ...]:
        """Its ordinary containers."""
        return tuple(str(c["name"]) for c in self.spec.get("containers") or [])

    @property
    def is_static(self) -> bool:
        """True for a pod that kubelet made from a file: it is not the API server's to delete."""
        metadata = self.body["metadata"]
        owners = metadata.get("ownerReferences") or []
        annotations = metadata.get("annotations") or {}
        return MIRROR_ANNOTATION in annotations or any(o.get("kind") == "Node" for o in owners)

    def container_statuses(self) -> dict[str, JsonObject]:
        """Status of each ordinary container that has one."""
        statuses = (self.body.get("status") or {}).get("containerStatuses") or []
        return {str(status["name"]): status for status in statuses}

    @property
    def has_ended(self) -> bool:
        """True when every container has ended, at least once."""
        ended = {
            name
            for name, status in self.container_statuses().items()
            if any("terminated" in (status.get(s) or {}) for s in ("state", "lastState"))
        }
        return self.phase in ("Succeeded", "Failed") or ended >= set(self.container_names)

    def unschedulable(self) -> str:
        """Why the scheduler found no node; empty when it did or has not looked yet."""
        for entry in (self.body.get("status") or {}).get("conditions") or []:
            if entry["type"] == "PodScheduled" and entry["status"] == "False":
                return str(entry.get("message") or entry.get("reason") or "no node fits")
        return ""

    def stuck(self) -> str:
        """What keeps containers from starting, as kubelet says it; empty when nothing does."""
        status = self.body.get("status") or {}
        entries = [
            *(status.get("initContainerStatuses") or []),
            *(status.get("containerStatuses") or []),
        ]
        for entry in entries:
            waiting = (entry.get("state") or {}).get("waiting") or {}
            reason = str(waiting.get("reason") or "")
            if reason not in ("", "PodInitializing", "ContainerCreating"):
                return f"container {entry['name']}: {reason}: {waiting.get('message', '')}"
        return ""


def view_pod(body: JsonObject) -> PodView:
    """A pod object as a view."""
    metadata = body["metadata"]
    return PodView(
        name=str(metadata["name"]),
        uid=str(metadata.get("uid") or ""),
        node_name=str(body["spec"].get("nodeName") or ""),
        phase=str((body.get("status") or {}).get("phase") or ""),
        deleting=bool(metadata.get("deletionTimestamp")),
        body=body,
    )


def view_node(body: JsonObject) -> NodeView:
    """A node object as a view."""
    name = str(body["metadata"]["name"])
    for entry in (body.get("status") or {}).get("conditions") or []:
        if entry["type"] == "Ready":
            moment = entry.get("lastTransitionTime")
            since = parse_time(moment) if moment else None
            return NodeView(name=name, ready=entry["status"] == "True", since=since)
    return NodeView(name=name, ready=False)

# SPDX-License-Identifier: Apache-2.0
"""Events of events.k8s.io, on the object and on the pod it is about."""

import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.client import Client
from torpor.plugin.k8s.errors import ApiError
from torpor.plugin.k8s.kinds import EVENTS

log = logging.getLogger(__name__)

NOTE_LIMIT = 1024
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened once; emitted on a transition, never on a mere look."""

    reason: str
    action: str
    note: str
    warning: bool = False


class Recorder:
    """Writes events in the name of one component; a lost event never stops work."""

    def __init__(self, client: Client, *, controller: str, instance: str) -> None:
        self._client = client
        self._controller = controller
        self._instance = instance

    def emit(self, event: Event, regarding: JsonObject, related: JsonObject | None = None) -> None:
        """Record ``event`` on ``regarding``; with ``related`` on both, each naming the other."""
        self._write(event, regarding, related)
        if related is not None:
            self._write(event, related, regarding)

    def _write(self, event: Event, regarding: JsonObject, related: JsonObject | None) -> None:
        metadata = regarding["metadata"]
        namespace = str(metadata.get("namespace") or DEFAULT_NAMESPACE)
        body: JsonObject = {
            "metadata": {
                "name": f"{str(metadata['name'])[:200]}.{secrets.token_hex(8)}",
                "namespace": namespace,
            },
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": self._controller,
            "reportingInstance": self._instance[:128],
            "action": event.action,
            "reason": event.reason[:128],
            "type": "Warning" if event.warning else "Normal",
            "note": event.note[:NOTE_LIMIT],
            "regarding": reference(regarding),
        }
        if related is not None:
            body["related"] = reference(related)
        try:
            self._client.create(EVENTS, namespace, body)
        except ApiError as error:
            log.warning("event %s on %s was lost: %s", event.reason, metadata["name"], error)


def reference(item: JsonObject) -> JsonObject:
    """ObjectReference of an object."""
    metadata = item["metadata"]
    full = {
        "apiVersion": item.get("apiVersion", ""),
        "kind": item.get("kind", ""),
        "namespace": metadata.get("namespace", ""),
        "name": metadata["name"],
        "uid": metadata.get("uid", ""),
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    return {key: value for key, value in full.items() if value}

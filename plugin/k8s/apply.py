# SPDX-License-Identifier: Apache-2.0
"""Status by server-side apply: each manager owns its fields and leaves the others' alone.

Server-side apply takes a field away when its owner does not send it again. A write therefore
starts from what the object's ``managedFields`` say is ours already and puts the changes over it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torpor.plugin.api import codec, conditions
from torpor.plugin.api.conditions import Condition
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.client import Client
from torpor.plugin.k8s.errors import Conflict
from torpor.plugin.k8s.kinds import Kind

ATTEMPTS = 5


class StatusWriter:
    """Writes status fields and conditions of one kind as one manager."""

    def __init__(self, client: Client, kind: Kind, manager: str) -> None:
        self._client = client
        self._kind = kind
        self._manager = manager

    def write(
        self,
        item: JsonObject,
        fields: Mapping[str, Any] | None = None,
        new_conditions: Iterable[Condition] = (),
    ) -> JsonObject:
        """Apply changes to an object's status; returns the object as it is then.

        ``fields`` has JSON names; a value of None takes the field away. Values may be models.

        Raises:
            NotFound: the object, or this incarnation of it, is gone.
        """
        wanted = tuple(new_conditions)
        for attempt in range(ATTEMPTS):
            body = status_body(item, self._manager, fields or {}, wanted)
            metadata = item["metadata"]
            namespace = str(metadata.get("namespace") or "")
            name = str(metadata["name"])
            try:
                return self._client.apply(
                    self._kind, namespace, name, body, manager=self._manager, subresource="status"
                )
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise
                fresh = self._client.get(self._kind, namespace, name)
                if fresh["metadata"]["uid"] != metadata["uid"]:
                    raise
                item = fresh
        raise AssertionError("unreachable")


def status_body(
    item: JsonObject, manager: str, fields: Mapping[str, Any], new_conditions: Iterable[Condition]
) -> JsonObject:
    """What to apply: our fields as they are, the changes, and the version they were made for."""
    status = owned_status(item, manager)
    old = conditions_of(status)
    status |= {name: codec.encode(value) for name, value in fields.items()}
    status = {name: value for name, value in status.items() if value is not None}
    merged = conditions.merge(old, new_conditions)
    if merged:
        status["conditions"] = codec.encode(merged)
    metadata = item["metadata"]
    version = {"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]}
    return {"metadata": version, "status": status}


def owned_status(item: JsonObject, manager: str) -> JsonObject:
    """The part of the status that ``manager`` applied before."""
    status = item.get("status") or {}
    owned: JsonObject = {}
    for tree in _status_trees(item, manager):
        for entry, below in tree.items():
            name = entry.removeprefix("f:")
            if name == "conditions":
                types = {t for t in map(_condition_type, below) if t}
                mine = [c for c in status.get("conditions", []) if c["type"] in types]
                owned.setdefault("conditions", []).extend(mine)
            elif entry.startswith("f:") and name in status:
                owned[name] = status[name]
    return owned


def conditions_of(status: JsonObject) -> conditions.Conditions:
    """Conditions of a status as models."""
    return tuple(codec.decode(Condition, entry) for entry in status.get("conditions") or [])


def _status_trees(item: JsonObject, manager: str) -> Iterable[JsonObject]:
    for entry in item["metadata"].get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply":
            yield (entry.get("fieldsV1") or {}).get("f:status") or {}


def _condition_type(entry: str) -> str:
    """Type in a managed-fields key like ``k:{"type":"Ready"}``."""
    prefix, suffix = 'k:{"type":"', '"}'
    return entry[len(prefix) : -len(suffix)] if entry.startswith(prefix) else ""

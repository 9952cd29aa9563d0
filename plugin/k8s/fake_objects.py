# SPDX-License-Identifier: Apache-2.0
"""What the fake API server does to objects: selectors, merge patch, server-side apply."""

import copy
import json
from typing import Any

from torpor.plugin.api.fields import JsonObject


def selected(item: JsonObject, query: dict[str, str]) -> bool:
    """Whether a label and a field selector (equality only) choose the object."""
    labels = item["metadata"].get("labels") or {}
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        name, equals, value = pair.partition("=")
        if name not in labels or (equals and labels[name] != value):
            return False
    for pair in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = pair.partition("=")
        found: Any = item
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != value:
            return False
    return True


def apply_status(item: JsonObject, status: JsonObject, manager: str) -> None:
    """Server-side apply, as far as a status of scalars, lists and conditions needs it."""
    entries = item["metadata"].setdefault("managedFields", [])
    entry = next((e for e in entries if e["manager"] == manager), None)
    if entry is None:
        entry = {"manager": manager, "operation": "Apply", "subresource": "status"}
        entries.append(entry)
    owned = entry.get("fieldsV1", {}).get("f:status", {})
    old = item.setdefault("status", {})
    keys = {_condition_key(c): c for c in status.get("conditions", [])}
    for name in owned:
        plain = name.removeprefix("f:")
        if plain != "conditions" and plain not in status:
            old.pop(plain, None)
    left = [
        c
        for c in old.get("conditions", [])
        if _condition_key(c) not in keys and _condition_key(c) not in owned.get("f:conditions", {})
    ]
    old |= {k: copy.deepcopy(v) for k, v in status.items() if k != "conditions"}
    if left or keys:
        old["conditions"] = left + [copy.deepcopy(c) for c in keys.values()]
    fields: JsonObject = {f"f:{name}": {} for name in status if name != "conditions"}
    entry["fieldsV1"] = {"f:status": fields | {"f:conditions": {key: {} for key in keys}}}


def _condition_key(entry: JsonObject) -> str:
    return "k:" + json.dumps({"type": entry["type"]}, separators=(",", ":"))


def merged(item: Any, patch: Any) -> Any:  # noqa: ANN401 (any JSON)
    """JSON merge patch, RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(item) if isinstance(item, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result

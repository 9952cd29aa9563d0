# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401 (values of any JSON type)
"""How a model says what its fields mean to the API: text, limits and rules beside the type."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]
"""A decoded JSON object at the edge; models take over from here."""

_META = "torpor.api"

NAME_LIMIT = 253
LABEL_LIMIT = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A CEL rule that the API server checks, and what it says when it does not hold."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldInfo:
    """What the schema says of a field beyond its type."""

    text: str
    schema: JsonObject
    items: JsonObject
    rules: tuple[Rule, ...]


def prop(
    text: str,
    *,
    default: Any = dataclasses.MISSING,
    factory: Callable[[], Any] | None = None,
    items: JsonObject | None = None,
    rules: tuple[Rule, ...] = (),
    **schema: Any,
) -> Any:
    """Declare a field: its description, default, and limits by their OpenAPI names.

    ``items`` holds the limits of a list's members or a map's values.
    """
    info = FieldInfo(text=text, schema=schema, items=items or {}, rules=rules)
    metadata = {_META: info}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is not dataclasses.MISSING:
        return dataclasses.field(default=default, metadata=metadata)
    return dataclasses.field(metadata=metadata)


def info_of(field: "dataclasses.Field[Any]") -> FieldInfo:
    """What :func:`prop` recorded for the field."""
    info = field.metadata.get(_META)
    if not isinstance(info, FieldInfo):
        raise TypeError(f"field {field.name} was not declared with prop()")
    return info


def json_name(name: str) -> str:
    """``pod_uid`` as the API writes it: ``podUID``."""
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word in {"uid", "id"} else word.title() for word in rest)

# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401 (values of any JSON type)
"""Between JSON objects of the API and the frozen models, by the models' own types."""

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from torpor.engine.errors import Refused
from torpor.plugin.api.fields import json_name

T = TypeVar("T")

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def decode(model: type[T], data: Any, where: str = "") -> T:
    """Build a model from decoded JSON; unknown fields are left out.

    Raises:
        Refused: a field is missing or has another type than the model says.
    """
    if not isinstance(data, Mapping):
        raise _mismatch(where, "an object", data)
    arguments = {}
    hints = type_hints(typing.cast("Any", model))
    for field in dataclasses.fields(model):  # type: ignore[arg-type]
        key = json_name(field.name)
        value = data.get(key)
        if value is not None:
            arguments[field.name] = _decode_value(
                hints[field.name], value, f"{where}.{key}".lstrip(".")
            )
        elif is_required(field):
            raise Refused(
                "field is missing",
                subject=f"{where}.{key}".lstrip("."),
                remedy="apply the CRDs of this release, then the object again",
            )
    return model(**arguments)


def encode(value: Any) -> Any:
    """Turn a model into what JSON takes; absent fields and empty lists are left out."""
    if dataclasses.is_dataclass(value):
        fields = ((json_name(f.name), getattr(value, f.name)) for f in dataclasses.fields(value))
        return {key: encode(item) for key, item in fields if item is not None and item != ()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


@functools.cache
def type_hints(model: Any) -> dict[str, Any]:
    """Resolved annotations of a model."""
    return typing.get_type_hints(model)


def is_required(field: "dataclasses.Field[Any]") -> bool:
    """True when the field has neither default nor factory."""
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def unwrap_optional(hint: Any) -> Any:
    """``X`` of ``X | None``, and anything else as it is."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        if len(members) == 1:
            return members[0]
    return hint


def parse_time(text: str) -> datetime:
    """RFC 3339 as the API server writes it, with or without a fraction."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def format_time(moment: datetime) -> str:
    """metav1.Time: whole seconds, UTC."""
    return moment.astimezone(UTC).strftime(TIME_FORMAT)


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    hint = unwrap_optional(hint)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(where, "a list", value)
        member = typing.get_args(hint)[0]
        return tuple(_decode_value(member, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, where)
    return _decode_scalar(hint, value, where)


def _decode_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is datetime and isinstance(value, str):
        return parse_time(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError as error:
            allowed = ", ".join(str(member.value) for member in hint)
            raise _mismatch(where, f"one of {allowed}", value) from error
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _mismatch(where, getattr(hint, "__name__", str(hint)), value)


def _mismatch(where: str, wanted: str, value: Any) -> Refused:
    return Refused(
        f"field should be {wanted}",
        subject=where or "object",
        cause=f"found {type(value).__name__} {str(value)[:80]!r}",
        remedy="apply the CRDs of this release, then the object again",
    )

# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009 (prop() makes a dataclass field)
"""metav1.Condition, kept as Kubernetes keeps it: by type, with the time of the last change."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from torpor.plugin.api.fields import prop

MESSAGE_LIMIT = 32768


class Status(StrEnum):
    """Value of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One observation of an object's state."""

    type: str = prop("Name of the condition.", maxLength=316, minLength=1)
    status: Status = prop("True, False or Unknown.")
    reason: str = prop(
        "Why, as one CamelCase word that programs may rely on.",
        maxLength=1024,
        minLength=1,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    )
    message: str = prop("Why, for people; may be empty.", maxLength=MESSAGE_LIMIT, default="")
    last_transition_time: datetime = prop("When the status changed last.")
    observed_generation: int | None = prop(
        "Generation of the object that was looked at.", default=None, minimum=0
    )


Conditions = tuple[Condition, ...]


def condition(
    kind: str,
    status: Status | bool,
    reason: str,
    message: str = "",
    *,
    generation: int | None = None,
    now: datetime | None = None,
) -> Condition:
    """A condition as of now."""
    if isinstance(status, bool):
        status = Status.TRUE if status else Status.FALSE
    return Condition(
        type=str(kind),
        status=status,
        reason=str(reason),
        message=message[:MESSAGE_LIMIT],
        last_transition_time=(now or datetime.now(UTC)).replace(microsecond=0),
        observed_generation=generation,
    )


def find(conditions: Conditions, kind: str) -> Condition | None:
    """The condition of that type, if it was ever set."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: Conditions, kind: str) -> bool:
    """True when the condition is set and True."""
    found = find(conditions, kind)
    return found is not None and found.status is Status.TRUE


def merge(old: Conditions, new: Iterable[Condition]) -> Conditions:
    """Put new conditions over old ones of their type.

    The time of the last transition is kept where the status is the same.
    """
    merged = {c.type: c for c in old}
    for fresh in new:
        before = merged.get(fresh.type)
        if before is not None and before.status is fresh.status:
            moment = before.last_transition_time
            merged[fresh.type] = replace(fresh, last_transition_time=moment)
        else:
            merged[fresh.type] = fresh
    return tuple(merged.values())


def changed(old: Conditions, new: Conditions) -> Conditions:
    """Those of ``new`` whose status or reason is not in ``old``: what an event is worth."""
    before = {(c.type, c.status, c.reason) for c in old}
    return tuple(c for c in new if (c.type, c.status, c.reason) not in before)

# SPDX-License-Identifier: Apache-2.0
"""What a ``decide`` may ask for. It computes these; only a reconcile carries them out."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from torpor.plugin.api.conditions import Condition, Conditions, condition, find
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType, Reason, is_failure


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatus:
    """Write fields and conditions of the object's own status."""

    fields: dict[str, Any] = field(default_factory=dict)
    conditions: Conditions = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetNodeLabel:
    """Show the object to the agent of that node."""

    node_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFinalizer:
    """Hold the object, or let it go."""

    name: str
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePod:
    """Create the pod of a restore."""

    body: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePod:
    """Delete that very pod."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Look again after a while, whether or not something changed."""

    after_s: float


Action = SetStatus | SetNodeLabel | SetFinalizer | CreatePod | DeletePod | Requeue
Actions = tuple[Action, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Generation and time that go into conditions made together."""

    generation: int
    now: datetime

    def true(self, kind: str, reason: str, message: str = "") -> Condition:
        """A condition that holds."""
        return condition(kind, True, reason, message, generation=self.generation, now=self.now)

    def false(self, kind: str, reason: str, message: str = "") -> Condition:
        """A condition that does not hold."""
        return condition(kind, False, reason, message, generation=self.generation, now=self.now)

    def status(self, *conditions: Condition, **fields: Any) -> SetStatus:  # noqa: ANN401 (JSON)
        """A write of these conditions and fields."""
        return SetStatus(
            fields={"observedGeneration": self.generation, **fields}, conditions=conditions
        )

    def waiting(self, reason: Reason, message: str) -> SetStatus:
        """Not ready yet, and why."""
        return self.status(self.false(ConditionType.READY, reason, message))

    def failed(self, reason: str, message: str) -> SetStatus:
        """The end, and why."""
        return self.status(
            self.false(ConditionType.READY, reason, message),
            self.true(ConditionType.FAILED, reason, message),
        )


def reported_failure(conditions: Conditions, kinds: tuple[ConditionType, ...]) -> Condition | None:
    """The agent's condition that says that work has ended in failure."""
    for kind in kinds:
        found = find(conditions, kind)
        if found is not None and found.status == "False" and is_failure(found.reason):
            return found
    return None


def age_s(moment: datetime | None, now: datetime) -> float:
    """Seconds since a moment; none at all since one that never was."""
    return (now - moment).total_seconds() if moment else 0.0

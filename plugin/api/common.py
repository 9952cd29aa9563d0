# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009 (prop() makes a dataclass field)
"""Names and pieces that more than one kind of torpor.dev uses."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from torpor.plugin.api.conditions import Conditions
from torpor.plugin.api.fields import LABEL_LIMIT, NAME_LIMIT, JsonObject, prop

GROUP = "torpor.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

NODE_LABEL = f"{GROUP}/node"
"""On Checkpoints and Restores: the node whose agent has work with the object."""
RESTORE_LABEL = f"{GROUP}/restore"
"""On restored pods: name of the Restore."""
RESTORE_UID_ANNOTATION = f"{GROUP}/restore-uid"
CHECKPOINT_ANNOTATION = f"{GROUP}/checkpoint"
FORCE_DELETE_ANNOTATION = f"{GROUP}/force-delete"
"""On a Checkpoint that is being deleted: let it go although its data could not be deleted."""
ON_STOP_ANNOTATION = f"{GROUP}/checkpoint-on-stop"
"""On a pod: its own processes may ask for its checkpoint, and find the means mounted."""
REQUESTED_BY_LABEL = f"{GROUP}/requested-by"
REQUESTED_BY_HOOK = "hook"
"""Such a Checkpoint was asked for by the pod itself, which may be stopping already."""
DATA_FINALIZER = f"{GROUP}/checkpoint-data"

CONTROLLER_MANAGER = "torpor-controller"
AGENT_MANAGER = "torpor-agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMeta:
    """The part of metav1.ObjectMeta that torpor looks at."""

    name: str = prop("Name.", default="")
    namespace: str = prop("Namespace; empty for cluster-wide kinds.", default="")
    uid: str = prop("Identity for the object's life.", default="")
    resource_version: str = prop("Version for optimistic writes.", default="")
    generation: int = prop("Counts changes of the spec.", default=0)
    labels: dict[str, str] = prop("Labels.", factory=dict)
    annotations: dict[str, str] = prop("Annotations.", factory=dict)
    finalizers: tuple[str, ...] = prop("Who has to let go before deletion.", default=())
    creation_timestamp: datetime | None = prop("When it was created.", default=None)
    deletion_timestamp: datetime | None = prop("When it is or was to go.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRef:
    """Name of an object of a known kind."""

    name: str = prop("Name of the object.", minLength=1, maxLength=NAME_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far work has come; for people."""

    phase: str = prop("Step that is being done.", maxLength=64)
    text: str = prop("The step in words.", default="", maxLength=1024)
    percent: int | None = prop("Done so far.", default=None, minimum=0, maximum=100)


CONDITIONS_SCHEMA: JsonObject = {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
}


def conditions_prop() -> Conditions:
    """The ``conditions`` field of a status."""
    declared: Conditions = prop(
        "State of the object, by type. Ready sums up; Failed=True is the other end.",
        default=(),
        maxItems=16,
        **CONDITIONS_SCHEMA,
    )
    return declared


def node_label(node_name: str) -> str:
    """Value of :data:`NODE_LABEL` for a node; long names are shortened to a digest."""
    if len(node_name) <= LABEL_LIMIT:
        return node_name
    return "sha256-" + hashlib.sha256(node_name.encode()).hexdigest()[:40]

# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009 (prop() makes a dataclass field)
"""Kinds of torpor.dev/v1alpha1: Checkpoint, Restore, CheckpointStore."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from torpor.plugin.api import duration
from torpor.plugin.api.common import NameRef, ObjectMeta, Progress, conditions_prop
from torpor.plugin.api.conditions import Conditions
from torpor.plugin.api.fields import LABEL_LIMIT, NAME_LIMIT, JsonObject, Rule, prop

MAP_BY_NAME: JsonObject = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
SET: JsonObject = {"x-kubernetes-list-type": "set"}
PATH_LIMIT = 4096
DURATION: JsonObject = {"pattern": duration.PATTERN, "maxLength": 32}
IMMUTABLE = Rule(
    rule="self == oldSelf", message="spec cannot be changed; delete the object and create it anew"
)


class AfterCheckpoint(StrEnum):
    """What becomes of the pod once its state is stored."""

    CONTINUE = "Continue"
    STOP = "Stop"


class DeletionPolicy(StrEnum):
    """What becomes of the data when the object is deleted."""

    DELETE = "Delete"
    RETAIN = "Retain"


class EstablishedTcp(StrEnum):
    """What a dump does with TCP connections that leave the pod."""

    CLOSE = "Close"
    REFUSE = "Refuse"


class MemoryWay(StrEnum):
    """How memory is taken."""

    AUTO = "Auto"
    FROZEN = "Frozen"
    SNAPSHOT = "Snapshot"
    PRE_COPY = "PreCopy"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRef:
    """A pod of the object's own namespace."""

    name: str = prop("Name of the pod.", minLength=1, maxLength=NAME_LIMIT)
    uid: str | None = prop(
        "UID the pod must have; another pod of that name is refused.", default=None, maxLength=64
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOptions:
    """TCP connections with peers outside the pod."""

    established: EstablishedTcp = prop(
        "Close: after a restore they are closed, as if the peer had reset them. "
        "Refuse: a pod that has any is not checkpointed.",
        default=EstablishedTcp.CLOSE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """How memory is taken, which decides how long the pod stands still."""

    way: MemoryWay = prop(
        "Auto: as is best. Frozen: copied while the pod stands still. Snapshot: forked while it "
        "stands still, and read later. PreCopy: copied in rounds while it runs, until little is "
        "left. Where one does not fit, another is taken.",
        default=MemoryWay.AUTO,
    )
    max_rounds: int = prop("Rounds of a PreCopy at most.", default=8, minimum=1, maximum=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """What to checkpoint, and how."""

    pod_ref: PodRef = prop("The pod to checkpoint, in this namespace.")
    containers: tuple[str, ...] = prop(
        "Containers to checkpoint; all when empty. They are cut at one instant.",
        default=(),
        maxItems=64,
        items={"minLength": 1, "maxLength": LABEL_LIMIT},
        **SET,
    )
    after_checkpoint: AfterCheckpoint = prop(
        "Continue: the pod runs on. Stop: the pod is deleted when its state is safe in the store.",
        default=AfterCheckpoint.CONTINUE,
    )
    store_ref: NameRef | None = prop(
        "CheckpointStore that takes the data; the default store when absent.", default=None
    )
    timeout: str = prop("How long the work may take.", default="5m", **DURATION)
    tcp: TcpOptions = prop("TCP connections with peers outside the pod.", factory=TcpOptions)
    memory: MemoryOptions = prop("How memory is taken.", factory=MemoryOptions)
    deletion_policy: DeletionPolicy = prop(
        "Delete: the data goes with this object. Retain: it stays in the store.",
        default=DeletionPolicy.DELETE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointedContainer:
    """One container of a checkpoint."""

    name: str = prop("Name of the container.", minLength=1, maxLength=LABEL_LIMIT)
    image: str | None = prop("Image as the pod named it.", default=None, maxLength=1024)
    image_id: str | None = prop("Image as the runtime resolved it.", default=None, maxLength=1024)
    image_digest: str | None = prop(
        "Digest of this container's state in the store.", default=None, maxLength=128
    )
    tasks: int | None = prop("Processes in the container.", default=None, minimum=0)
    memory_bytes: int | None = prop("Memory written.", default=None, minimum=0)
    memory_way: str | None = prop(
        "How its memory was taken, and why in that way.", default=None, maxLength=1024
    )
    pause: str | None = prop("How long this container stood still.", default=None, **DURATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStatus:
    """What happened so far."""

    conditions: Conditions = conditions_prop()
    observed_generation: int | None = prop("Generation acted upon.", default=None, minimum=0)
    node_name: str | None = prop("Node of the pod.", default=None, maxLength=NAME_LIMIT)
    pod_uid: str | None = prop("UID of the pod that was taken.", default=None, maxLength=64)
    store_name: str | None = prop("Store with the data.", default=None, maxLength=NAME_LIMIT)
    path: str | None = prop("Place inside the store.", default=None, maxLength=PATH_LIMIT)
    size_bytes: int | None = prop("Size of the state.", default=None, minimum=0)
    stored_bytes: int | None = prop(
        "Bytes it added to the store, after compression.", default=None, minimum=0
    )
    pause: str | None = prop("How long the pod stood still.", default=None, **DURATION)
    pause_steps: dict[str, str] = prop(
        "The same by step.", factory=dict, maxProperties=32, items={"maxLength": 32}
    )
    steps: dict[str, str] = prop(
        "How long the long steps took: rounds of a PreCopy, writing, storing, verifying; of a pod "
        "that was stopped also the time from then until its state was stored.",
        factory=dict,
        maxProperties=32,
        items={"maxLength": 32},
    )
    started_at: datetime | None = prop("When the agent began.", default=None)
    completed_at: datetime | None = prop("When the manifest was committed.", default=None)
    manifest_digest: str | None = prop(
        "Digest of the manifest, which names the digest of every chunk.",
        default=None,
        maxLength=128,
    )
    containers: tuple[CheckpointedContainer, ...] = prop(
        "What was taken, by container.", default=(), maxItems=64, **MAP_BY_NAME
    )
    pod_template: JsonObject | None = prop(
        "Labels, annotations and spec of the pod, for its restore.", default=None
    )
    progress: Progress | None = prop("How far the work has come.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a running pod, taken at one instant and kept in a store."""

    KIND: ClassVar[str] = "Checkpoint"
    PLURAL: ClassVar[str] = "checkpoints"

    metadata: ObjectMeta = prop("Standard metadata.")
    spec: CheckpointSpec = prop("What to checkpoint, and how.", rules=(IMMUTABLE,))
    status: CheckpointStatus = prop("What happened so far.", factory=CheckpointStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataChanges:
    """What the restored pod's metadata has over the recorded one."""

    labels: dict[str, str] = prop(
        "Labels to set; an empty value keeps an empty label.",
        factory=dict,
        maxProperties=64,
        items={"maxLength": LABEL_LIMIT},
    )
    annotations: dict[str, str] = prop(
        "Annotations to set.", factory=dict, maxProperties=64, items={"maxLength": 16384}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSpec:
    """Which checkpoint to bring back, where, and under which name."""

    checkpoint_ref: NameRef = prop("Checkpoint in this namespace.")
    node_name: str | None = prop(
        "Node to restore on; the scheduler still checks that it has room.",
        default=None,
        minLength=1,
        maxLength=NAME_LIMIT,
    )
    node_selector: dict[str, str] = prop(
        "Labels that the node must have, with those of the pod itself.",
        factory=dict,
        maxProperties=32,
        items={"maxLength": LABEL_LIMIT},
    )
    pod_name: str | None = prop(
        "Name of the new pod; made from the old one and this object when absent.",
        default=None,
        maxLength=NAME_LIMIT,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    )
    metadata: MetadataChanges = prop("Changes of the pod's metadata.", factory=MetadataChanges)
    timeout: str = prop("How long the restore may take.", default="10m", **DURATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredContainer:
    """One container of a restored pod."""

    name: str = prop("Name of the container.", minLength=1, maxLength=LABEL_LIMIT)
    pid: int | None = prop("Its init, as the node counts.", default=None, minimum=1)
    tasks: int | None = prop("Processes brought back.", default=None, minimum=0)
    restore_seconds: str | None = prop("Time the takeover took.", default=None, maxLength=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreStatus:
    """What happened so far."""

    conditions: Conditions = conditions_prop()
    observed_generation: int | None = prop("Generation acted upon.", default=None, minimum=0)
    pod_name: str | None = prop("The new pod.", default=None, maxLength=NAME_LIMIT)
    pod_uid: str | None = prop("UID of the new pod.", default=None, maxLength=64)
    node_name: str | None = prop("Node of the new pod.", default=None, maxLength=NAME_LIMIT)
    restored_at: datetime | None = prop("When its processes ran on.", default=None)
    downtime: str | None = prop(
        "From the instant of the checkpoint to the restore.", default=None, **DURATION
    )
    steps: dict[str, str] = prop(
        "How long the steps took: fetching, waiting for the new pod, files, what was left to fetch "
        "of memory, takeover.",
        factory=dict,
        maxProperties=32,
        items={"maxLength": 32},
    )
    containers: tuple[RestoredContainer, ...] = prop(
        "What was brought back, by container.", default=(), maxItems=64, **MAP_BY_NAME
    )
    progress: Progress | None = prop("How far the work has come.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """A pod brought back from a Checkpoint."""

    KIND: ClassVar[str] = "Restore"
    PLURAL: ClassVar[str] = "restores"

    metadata: ObjectMeta = prop("Standard metadata.")
    spec: RestoreSpec = prop(
        "Which checkpoint to bring back, where, and under which name.",
        rules=(
            IMMUTABLE,
            Rule(
                rule="!has(self.nodeName) || !has(self.nodeSelector)"
                " || self.nodeSelector.size() == 0",
                message="give nodeName or nodeSelector, not both",
            ),
        ),
    )
    status: RestoreStatus = prop("What happened so far.", factory=RestoreStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPathVolume:
    """A directory that every node has under the same path, with the same content."""

    path: str = prop("Absolute path.", pattern="^/", maxLength=PATH_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimVolume:
    """A claim in torpor's own namespace, ReadWriteMany when there is more than one node."""

    claim_name: str = prop("Name of the claim.", minLength=1, maxLength=NAME_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsVolume:
    """An NFS export."""

    server: str = prop("Host name or address.", minLength=1, maxLength=NAME_LIMIT)
    path: str = prop("Exported path.", pattern="^/", maxLength=PATH_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreVolume:
    """The volume of a store: exactly one of its members."""

    host_path: HostPathVolume | None = prop("A directory of the nodes.", default=None)
    persistent_volume_claim: ClaimVolume | None = prop("A claim.", default=None)
    nfs: NfsVolume | None = prop("An NFS export.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStoreSpec:
    """Where a store is."""

    volume: StoreVolume | None = prop(
        "A volume that the agents mount.",
        default=None,
        rules=(
            Rule(
                rule="[has(self.hostPath), has(self.persistentVolumeClaim), has(self.nfs)]"
                ".filter(x, x).size() == 1",
                message="give exactly one of hostPath, persistentVolumeClaim, nfs",
            ),
            Rule(rule="self == oldSelf", message="the volume of a store cannot be changed"),
        ),
    )
    default: bool = prop("Takes Checkpoints that name no store.", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStoreStatus:
    """State of a store."""

    conditions: Conditions = conditions_prop()
    observed_generation: int | None = prop("Generation acted upon.", default=None, minimum=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStore:
    """A place for checkpoints that all nodes reach."""

    KIND: ClassVar[str] = "CheckpointStore"
    PLURAL: ClassVar[str] = "checkpointstores"

    metadata: ObjectMeta = prop("Standard metadata.")
    spec: CheckpointStoreSpec = prop(
        "Where the store is.",
        rules=(Rule(rule="has(self.volume)", message="give a volume"),),
    )
    status: CheckpointStoreStatus = prop("State of the store.", factory=CheckpointStoreStatus)

# SPDX-License-Identifier: Apache-2.0
"""Condition types and reasons: names that users and programs may rely on."""

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of conditions; ``Ready`` is the summary, ``Failed`` the other end of the road."""

    READY = "Ready"
    FAILED = "Failed"
    ASSIGNED = "Assigned"
    CAPTURED = "Captured"
    STORED = "Stored"
    SOURCE_STOPPED = "SourceStopped"
    POD_CREATED = "PodCreated"
    RESTORED = "Restored"
    DATA_DELETED = "DataDeleted"


class Reason(StrEnum):
    """Why a condition has its status. Members of :data:`WAITING` are passed through."""

    PENDING = "Pending"
    ASSIGNED = "Assigned"
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"
    POD_CREATED = "PodCreated"
    POD_STARTING = "PodStarting"
    UNSCHEDULABLE = "Unschedulable"
    CHECKPOINT_NOT_READY = "CheckpointNotReady"
    MOUNTED = "Mounted"
    NOT_MOUNTED = "NotMounted"
    STORE_UNREACHABLE = "StoreUnreachable"
    # From here on: ends.
    NO_NODE = "NoNode"
    POD_NOT_FOUND = "PodNotFound"
    POD_NOT_RUNNING = "PodNotRunning"
    POD_DELETING = "PodDeleting"
    POD_REPLACED = "PodReplaced"
    POD_FAILED = "PodFailed"
    POD_NAME_TAKEN = "PodNameTaken"
    POD_REJECTED = "PodRejected"
    CONTAINER_NOT_FOUND = "ContainerNotFound"
    HOST_NETWORK_POD = "HostNetworkPod"
    STATIC_POD = "StaticPod"
    NODE_LOST = "NodeLost"
    STORE_NOT_FOUND = "StoreNotFound"
    STORE_FAILED = "StoreFailed"
    AGENT_RESTARTED = "AgentRestarted"
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound"
    CHECKPOINT_FAILED = "CheckpointFailed"
    IMAGE_MISMATCH = "ImageMismatch"
    # Classes of torpor.engine.errors.
    REFUSED = "Refused"
    VANISHED = "Vanished"
    DENIED = "Denied"
    UNAVAILABLE = "Unavailable"
    BAD_IMAGE = "BadImage"
    KERNEL_ERROR = "KernelError"
    TIMEOUT = "Timeout"
    BUG = "Bug"


WAITING = frozenset(
    {
        Reason.PENDING,
        Reason.ASSIGNED,
        Reason.IN_PROGRESS,
        Reason.POD_CREATED,
        Reason.POD_STARTING,
        Reason.UNSCHEDULABLE,
        Reason.CHECKPOINT_NOT_READY,
        Reason.MOUNTED,
        Reason.NOT_MOUNTED,
        Reason.STORE_UNREACHABLE,
    }
)
"""Reasons of work that may still succeed; every other one but ``Completed`` is an end."""


def is_failure(reason: str) -> bool:
    """True when a condition that is False for this reason will not become True by itself."""
    return reason not in WAITING and reason != Reason.COMPLETED

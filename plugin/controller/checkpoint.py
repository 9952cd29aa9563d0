# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: which pod, node and store; when it is done; what goes with the object.

The agent of the pod's node takes the state and says so in Captured and Stored. Everything else,
Ready and Failed above all, is decided here.
"""

from dataclasses import dataclass
from datetime import datetime

from torpor.plugin.api.common import (
    DATA_FINALIZER,
    FORCE_DELETE_ANNOTATION,
    NODE_LABEL,
    REQUESTED_BY_HOOK,
    REQUESTED_BY_LABEL,
    node_label,
)
from torpor.plugin.api.conditions import find, is_true
from torpor.plugin.api.duration import parse_duration_s
from torpor.plugin.api.reasons import ConditionType, Reason
from torpor.plugin.api.v1alpha1 import (
    AfterCheckpoint,
    Checkpoint,
    CheckpointStore,
    DeletionPolicy,
)
from torpor.plugin.controller.actions import (
    Action,
    Actions,
    DeletePod,
    Requeue,
    SetFinalizer,
    SetNodeLabel,
    Stamp,
    age_s,
    reported_failure,
)
from torpor.plugin.controller.observed import NodeView, PodView

TIMEOUT_GRACE_S = 30.0
NODE_LOST_AFTER_S = 30.0
DELETION_PATIENCE_S = 300.0
LOOK_AGAIN_S = 10.0
POD_WAIT_S = 2.0

_AGENT_CONDITIONS = (ConditionType.CAPTURED, ConditionType.STORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointView:
    """Everything that a decision about a Checkpoint rests on."""

    checkpoint: Checkpoint
    pod: PodView | None
    nodes: tuple[NodeView, ...]
    stores: tuple[CheckpointStore, ...]
    now: datetime

    @property
    def stamp(self) -> Stamp:
        """For conditions made from this view."""
        return Stamp(generation=self.checkpoint.metadata.generation, now=self.now)

    def node(self, name: str | None) -> NodeView | None:
        """The node of that name, if it exists."""
        return next((node for node in self.nodes if node.name == name), None)


def decide(view: CheckpointView) -> Actions:
    """What to do about a Checkpoint now."""
    conditions = view.checkpoint.status.conditions
    if view.checkpoint.metadata.deletion_timestamp:
        return _delete(view)
    if is_true(conditions, ConditionType.READY) or is_true(conditions, ConditionType.FAILED):
        return ()
    if failure := reported_failure(conditions, _AGENT_CONDITIONS):
        return (view.stamp.failed(failure.reason, failure.message),)
    if not is_true(conditions, ConditionType.ASSIGNED):
        return _assign(view)
    if is_true(conditions, ConditionType.CAPTURED) and is_true(conditions, ConditionType.STORED):
        return _finish(view)
    return _watch_over(view)


def default_store(stores: tuple[CheckpointStore, ...]) -> CheckpointStore | None:
    """The one that says so, the oldest of several; else the only one there is."""
    marked = [store for store in stores if store.spec.default]
    if marked:
        return min(marked, key=lambda s: (s.metadata.creation_timestamp is None,
                                          s.metadata.creation_timestamp or datetime.max,
                                          s.metadata.name))  # fmt: skip
    return stores[0] if len(stores) == 1 else None


def _assign(view: CheckpointView) -> Actions:
    spec = view.checkpoint.spec
    if view.pod is None:
        text = (
            f"there is no pod {spec.pod_ref.name!r} in namespace "
            + repr(view.checkpoint.metadata.namespace)
            + "; remedy: name a running pod of the Checkpoint's own namespace"
        )
        return (view.stamp.failed(Reason.POD_NOT_FOUND, text),)
    if objection := _objection(view.checkpoint, view.pod):
        return (view.stamp.failed(*objection),)
    if view.pod.phase != "Running":
        return _wait_for_pod(view, view.pod)
    name = spec.store_ref.name if spec.store_ref else ""
    if name:
        store = next((s for s in view.stores if s.metadata.name == name), None)
        missing = f"there is no CheckpointStore {name!r}; remedy: " + _known(view.stores)
    else:
        store = default_store(view.stores)
        missing = "no CheckpointStore is the default one; remedy: " + _known(view.stores)
    if store is None:
        return (view.stamp.failed(Reason.STORE_NOT_FOUND, missing),)
    ready = find(store.status.conditions, ConditionType.READY)
    if ready is not None and ready.status == "False":
        text = f"CheckpointStore {store.metadata.name!r} is not ready: {ready.message}"
        return (view.stamp.failed(Reason.STORE_NOT_FOUND, text),)
    return _hand_over(view, view.pod, store.metadata.name)


def _known(stores: tuple[CheckpointStore, ...]) -> str:
    """What to do about a store that is not there."""
    names = sorted(store.metadata.name for store in stores)
    return f"name one of {', '.join(names)} in spec.storeRef" if names else "create one"


def _hand_over(view: CheckpointView, pod: PodView, store_name: str) -> Actions:
    stamp = view.stamp
    text = f"agent of node {pod.node_name} takes pod {pod.name}"
    return (
        SetFinalizer(name=DATA_FINALIZER, present=True),
        SetNodeLabel(node_name=pod.node_name),
        stamp.status(
            stamp.true(ConditionType.ASSIGNED, Reason.ASSIGNED, text),
            stamp.false(ConditionType.READY, Reason.ASSIGNED, text),
            nodeName=pod.node_name,
            podUID=pod.uid,
            storeName=store_name,
        ),
        Requeue(after_s=LOOK_AGAIN_S),
    )


def _objection(checkpoint: Checkpoint, pod: PodView) -> tuple[Reason, str] | None:
    """Why this pod cannot be checkpointed, whatever its state."""
    spec = checkpoint.spec
    wanted_uid = spec.pod_ref.uid
    by_hook = checkpoint.metadata.labels.get(REQUESTED_BY_LABEL) == REQUESTED_BY_HOOK
    unknown = sorted(set(spec.containers) - set(pod.container_names))
    sidecars = [
        str(c["name"])
        for c in pod.spec.get("initContainers") or []
        if c.get("restartPolicy") == "Always"
    ]
    shared = [name for name in ("hostPID", "hostIPC") if pod.spec.get(name)]
    checks: tuple[tuple[object, Reason, str], ...] = (
        (
            wanted_uid and wanted_uid != pod.uid,
            Reason.POD_REPLACED,
            f"pod {pod.name} has UID {pod.uid}, not {wanted_uid}: it was replaced; "
            "remedy: name the new UID, or none",
        ),
        (
            # A pod that is stopping waits for the checkpoint that its own hook asked for.
            pod.deleting and not by_hook,
            Reason.POD_DELETING,
            f"pod {pod.name} is being deleted; remedy: name a pod that goes on running",
        ),
        (
            pod.is_static,
            Reason.STATIC_POD,
            f"pod {pod.name} is a static pod of its node and cannot be moved; "
            "remedy: run the workload as a pod of the API server",
        ),
        (
            pod.spec.get("hostNetwork"),
            Reason.HOST_NETWORK_POD,
            f"pod {pod.name} uses its node's network, which does not move with it; "
            "remedy: run the workload without hostNetwork",
        ),
        (
            shared,
            Reason.REFUSED,
            f"pod {pod.name} shares its node's namespaces ({', '.join(shared)}); "
            "remedy: run the workload without these",
        ),
        (
            sidecars,
            Reason.REFUSED,
            f"pod {pod.name} has init containers that keep running ({', '.join(sidecars)}); "
            "these cannot be brought back yet; remedy: make them ordinary containers",
        ),
        (
            unknown,
            Reason.CONTAINER_NOT_FOUND,
            f"pod {pod.name} has no container {', '.join(unknown)}; "
            f"it has {', '.join(pod.container_names)}; remedy: name these, or none to take all",
        ),
        (
            pod.phase in ("Succeeded", "Failed"),
            Reason.POD_NOT_RUNNING,
            f"pod {pod.name} has ended ({pod.phase}); remedy: name a pod that runs",
        ),
    )
    return next(((reason, text) for holds, reason, text in checks if holds), None)


def _wait_for_pod(view: CheckpointView, pod: PodView) -> Actions:
    waited_s = age_s(view.checkpoint.metadata.creation_timestamp, view.now)
    text = f"pod {pod.name} is {pod.phase or 'not started'}, not Running"
    if waited_s > parse_duration_s(view.checkpoint.spec.timeout):
        return (view.stamp.failed(Reason.POD_NOT_RUNNING, text),)
    return (view.stamp.waiting(Reason.PENDING, text), Requeue(after_s=POD_WAIT_S))


def _watch_over(view: CheckpointView) -> Actions:
    """While the agent works: is its node there, and is it in time?"""
    status = view.checkpoint.status
    node = view.node(status.node_name)
    if node is None:
        text = f"node {status.node_name} is gone; remedy: checkpoint the pod's successor"
        return (view.stamp.failed(Reason.NODE_LOST, text),)
    if not node.ready and age_s(node.since, view.now) > NODE_LOST_AFTER_S:
        text = (
            f"node {node.name} is not ready since {node.since}; "
            "remedy: see what is wrong with it, then create a new Checkpoint"
        )
        return (view.stamp.failed(Reason.NODE_LOST, text),)
    assigned = find(status.conditions, ConditionType.ASSIGNED)
    limit_s = parse_duration_s(view.checkpoint.spec.timeout) + TIMEOUT_GRACE_S
    worked_s = age_s(assigned.last_transition_time if assigned else None, view.now)
    captured = find(status.conditions, ConditionType.CAPTURED)
    if worked_s > limit_s:
        state = f"it is at: {captured.message or captured.reason}" if captured else "no sign of it"
        text = (
            f"the agent of node {node.name} did not finish within {view.checkpoint.spec.timeout}; "
            f"{state}; remedy: look at the agent's log on that node"
        )
        return (view.stamp.failed(Reason.TIMEOUT, text),)
    again = Requeue(after_s=min(LOOK_AGAIN_S, max(1.0, limit_s - worked_s)))
    if captured is None:
        return (again,)
    text = captured.message or f"agent of node {node.name} is at work"
    if is_true(status.conditions, ConditionType.CAPTURED):
        text = "state is captured and is being stored"
    return (view.stamp.waiting(Reason.IN_PROGRESS, text), again)


def _finish(view: CheckpointView) -> Actions:
    """State is safe in the store; stop the source if that was asked."""
    stamp = view.stamp
    checkpoint = view.checkpoint
    done = stamp.true(
        ConditionType.READY, Reason.COMPLETED, f"stored in {checkpoint.status.store_name}"
    )
    if checkpoint.spec.after_checkpoint is AfterCheckpoint.CONTINUE:
        return (stamp.status(done),)
    pod = view.pod
    if pod is None or pod.uid != checkpoint.status.pod_uid or pod.deleting:
        text = f"pod {checkpoint.spec.pod_ref.name} is deleted"
        stopped = stamp.true(ConditionType.SOURCE_STOPPED, Reason.COMPLETED, text)
        return (stamp.status(stopped, done),)
    return (DeletePod(name=pod.name, uid=pod.uid), Requeue(after_s=0.2))


def _delete(view: CheckpointView) -> Actions:
    """The object is to go: its data first, by an agent that reaches the store."""
    checkpoint = view.checkpoint
    metadata = checkpoint.metadata
    if DATA_FINALIZER not in metadata.finalizers:
        return ()
    release = SetFinalizer(name=DATA_FINALIZER, present=False)
    status = checkpoint.status
    if (
        checkpoint.spec.deletion_policy is DeletionPolicy.RETAIN
        or not status.node_name
        or is_true(status.conditions, ConditionType.DATA_DELETED)
        or metadata.annotations.get(FORCE_DELETE_ANNOTATION) == "true"
    ):
        return (release,)
    actions: list[Action] = []
    ready = [node.name for node in view.nodes if node.ready]
    shown_to = metadata.labels.get(NODE_LABEL)
    if ready and shown_to not in {node_label(name) for name in ready}:
        actions.append(SetNodeLabel(node_name=min(ready)))
    if age_s(metadata.deletion_timestamp, view.now) > DELETION_PATIENCE_S:
        reported = find(status.conditions, ConditionType.DATA_DELETED)
        why = reported.message if reported else "no agent could delete it"
        text = (
            f"data in store {status.store_name} could not be deleted: {why}; to let go without it: "
            f"kubectl annotate {metadata.name} {FORCE_DELETE_ANNOTATION}=true"
        ).replace("annotate ", "annotate checkpoint ")
        actions.append(view.stamp.waiting(Reason.STORE_UNREACHABLE, text))
    return (*actions, Requeue(after_s=LOOK_AGAIN_S))

# SPDX-License-Identifier: Apache-2.0
"""Restores: when the checkpoint is there, the pod, and when it is back.

The controller creates the pod; the agent of the node that the scheduler chose takes its
containers over and says so in Restored. Ready follows when kubelet has seen them started.
"""

from dataclasses import dataclass
from datetime import datetime

from torpor.plugin.api.common import GROUP
from torpor.plugin.api.conditions import find, is_true
from torpor.plugin.api.duration import parse_duration_s
from torpor.plugin.api.reasons import ConditionType, Reason
from torpor.plugin.api.v1alpha1 import Checkpoint, Restore
from torpor.plugin.controller.actions import (
    Actions,
    CreatePod,
    DeletePod,
    Requeue,
    SetFinalizer,
    SetNodeLabel,
    Stamp,
    age_s,
    reported_failure,
)
from torpor.plugin.controller.observed import NodeView, PodView
from torpor.plugin.controller.podtemplate import HelperImage, build, is_pod_of, pod_name

POD_FINALIZER = f"{GROUP}/unfinished-pod"
"""On a Restore at work: a pod that is not back yet goes with it."""
CHECKPOINT_PATIENCE_S = 30.0
TIMEOUT_GRACE_S = 10.0
NODE_LOST_AFTER_S = 30.0
GIVE_UP_PATIENCE_S = 20.0
LOOK_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreView:
    """Everything that a decision about a Restore rests on."""

    restore: Restore
    checkpoint: Checkpoint | None
    pod: PodView | None
    nodes: tuple[NodeView, ...]
    helper: HelperImage
    now: datetime

    @property
    def stamp(self) -> Stamp:
        """For conditions made from this view."""
        return Stamp(generation=self.restore.metadata.generation, now=self.now)

    @property
    def own_pod(self) -> PodView | None:
        """The pod, if it is the one that this Restore created."""
        return self.pod if self.pod and is_pod_of(self.pod.body, self.restore) else None

    def node(self, name: str | None) -> NodeView | None:
        """The node of that name, if it exists."""
        return next((node for node in self.nodes if node.name == name), None)


def decide(view: RestoreView) -> Actions:
    """What to do about a Restore now."""
    restore = view.restore
    conditions = restore.status.conditions
    over = is_true(conditions, ConditionType.READY) or is_true(conditions, ConditionType.FAILED)
    if over or restore.metadata.deletion_timestamp:
        return _let_go(view, over=over)
    if failure := reported_failure(conditions, (ConditionType.RESTORED,)):
        again = Requeue(after_s=LOOK_AGAIN_S)
        return (view.stamp.failed(failure.reason, failure.message), again)
    if not is_true(conditions, ConditionType.POD_CREATED):
        return _prepare(view)
    return _follow(view)


def target_pod_name(restore: Restore, checkpoint: Checkpoint | None) -> str:
    """Name of the pod of a Restore, as far as it is known already."""
    if restore.status.pod_name or restore.spec.pod_name or checkpoint is None:
        return restore.status.pod_name or restore.spec.pod_name or ""
    return pod_name(checkpoint, restore)


def _prepare(view: RestoreView) -> Actions:
    """Until the pod exists."""
    stamp = view.stamp
    checkpoint = view.checkpoint
    name = view.restore.spec.checkpoint_ref.name
    if checkpoint is None:
        text = (
            f"there is no Checkpoint {name!r} in namespace "
            + repr(view.restore.metadata.namespace)
            + "; remedy: create the Restore in the namespace of its Checkpoint"
        )
        if age_s(view.restore.metadata.creation_timestamp, view.now) < CHECKPOINT_PATIENCE_S:
            waiting = stamp.waiting(Reason.CHECKPOINT_NOT_READY, text)
            return (waiting, Requeue(after_s=LOOK_AGAIN_S))
        return (stamp.failed(Reason.CHECKPOINT_NOT_FOUND, text), *_release(view))
    if checkpoint.metadata.deletion_timestamp:
        text = f"Checkpoint {name} is being deleted; remedy: name another one"
        return (stamp.failed(Reason.CHECKPOINT_NOT_FOUND, text), *_release(view))
    failed = find(checkpoint.status.conditions, ConditionType.FAILED)
    if failed is not None and failed.status == "True":
        text = f"Checkpoint {name} failed: {failed.reason}: {failed.message}"
        return (stamp.failed(Reason.CHECKPOINT_FAILED, text), *_release(view))
    if not is_true(checkpoint.status.conditions, ConditionType.READY):
        waiting = stamp.waiting(Reason.CHECKPOINT_NOT_READY, f"Checkpoint {name} is not Ready yet")
        return (waiting, Requeue(after_s=LOOK_AGAIN_S))
    return _create(view, checkpoint)


def _create(view: RestoreView, checkpoint: Checkpoint) -> Actions:
    stamp = view.stamp
    wanted = view.restore.spec.node_name
    if wanted and view.node(wanted) is None:
        text = f"there is no node {wanted!r}; remedy: name a node of the cluster, or none"
        return (stamp.failed(Reason.NO_NODE, text), *_release(view))
    if not checkpoint.status.pod_template or not checkpoint.status.containers:
        text = f"Checkpoint {checkpoint.metadata.name} has no recorded pod in its status"
        return (stamp.failed(Reason.BAD_IMAGE, text), *_release(view))
    if view.pod is not None and view.own_pod is None:
        text = f"pod {view.pod.name} exists already; remedy: delete it or set spec.podName"
        return (stamp.failed(Reason.POD_NAME_TAKEN, text), *_release(view))
    if view.own_pod is None:
        body = build(checkpoint, view.restore, view.helper)
        return (SetFinalizer(name=POD_FINALIZER, present=True), CreatePod(body=body))
    text = f"pod {view.own_pod.name} is created"
    created = stamp.status(
        stamp.true(ConditionType.POD_CREATED, Reason.POD_CREATED, text),
        stamp.false(ConditionType.READY, Reason.POD_CREATED, text),
        podName=view.own_pod.name,
        podUID=view.own_pod.uid,
    )
    return (created, Requeue(after_s=LOOK_AGAIN_S))


def _follow(view: RestoreView) -> Actions:
    """From the pod's creation to its return."""
    stamp = view.stamp
    status = view.restore.status
    pod = view.own_pod
    if pod is None or pod.uid != status.pod_uid or pod.deleting:
        text = (
            f"pod {status.pod_name} was deleted before it was restored; "
            "remedy: create a new Restore"
        )
        return (stamp.failed(Reason.POD_NOT_FOUND, text), *_release(view))
    if pod.phase in ("Succeeded", "Failed"):
        text = (
            f"pod {pod.name} ended ({pod.phase}) before it was restored; "
            f"remedy: see why (kubectl describe pod {pod.name}), then create a new Restore"
        )
        return (stamp.failed(Reason.POD_FAILED, text), *_release(view))
    if late := _late(view, pod):
        return late
    again = Requeue(after_s=LOOK_AGAIN_S)
    if not pod.node_name:
        if reason := pod.unschedulable():
            return (
                stamp.status(
                    stamp.false(ConditionType.ASSIGNED, Reason.UNSCHEDULABLE, reason),
                    stamp.false(ConditionType.READY, Reason.UNSCHEDULABLE, reason),
                ),
                again,
            )
        return (again,)
    if not is_true(status.conditions, ConditionType.ASSIGNED):
        text = f"agent of node {pod.node_name} takes pod {pod.name} over"
        return (
            SetNodeLabel(node_name=pod.node_name),
            stamp.status(
                stamp.true(ConditionType.ASSIGNED, Reason.ASSIGNED, text),
                stamp.false(ConditionType.READY, Reason.ASSIGNED, text),
                nodeName=pod.node_name,
            ),
            again,
        )
    return _await_return(view, pod)


def _await_return(view: RestoreView, pod: PodView) -> Actions:
    stamp = view.stamp
    again = Requeue(after_s=LOOK_AGAIN_S)
    restored = find(view.restore.status.conditions, ConditionType.RESTORED)
    if restored is None:
        stuck = pod.stuck()
        text = stuck or f"pod {pod.name} is starting on node {pod.node_name}"
        return (stamp.waiting(Reason.POD_STARTING, text), again)
    if restored.status != "True":
        return (stamp.waiting(Reason.IN_PROGRESS, restored.message), again)
    statuses = pod.container_statuses()
    waiting = [name for name in pod.container_names if not statuses.get(name, {}).get("started")]
    if waiting:
        text = f"state is back; kubelet has not yet seen started: {', '.join(waiting)}"
        return (stamp.waiting(Reason.IN_PROGRESS, text), again)
    text = f"pod {pod.name} runs on node {pod.node_name}"
    ready = stamp.status(stamp.true(ConditionType.READY, Reason.COMPLETED, text))
    return (ready, *_release(view))


def _late(view: RestoreView, pod: PodView) -> Actions:
    """Failure for a lost node or a passed deadline; the unfinished pod goes, too."""
    status = view.restore.status
    remove = DeletePod(name=pod.name, uid=pod.uid)
    if is_true(status.conditions, ConditionType.RESTORED):
        return ()
    if pod.node_name:
        node = view.node(pod.node_name)
        lost = node is None or (not node.ready and age_s(node.since, view.now) > NODE_LOST_AFTER_S)
        if lost:
            text = (
                f"node {pod.node_name} was lost before the restore ended; "
                "remedy: create a new Restore"
            )
            return (view.stamp.failed(Reason.NODE_LOST, text), remove, *_release(view))
    created = find(status.conditions, ConditionType.POD_CREATED)
    worked_s = age_s(created.last_transition_time if created else None, view.now)
    if worked_s <= parse_duration_s(view.restore.spec.timeout) + TIMEOUT_GRACE_S:
        return ()
    ready = find(status.conditions, ConditionType.READY)
    reason = Reason.TIMEOUT
    state = f"{ready.reason}: {ready.message}" if ready else "nothing happened"
    text = f"not restored within {view.restore.spec.timeout}; last state: {state}"
    return (view.stamp.failed(reason, text), remove, *_release(view))


def _let_go(view: RestoreView, *, over: bool) -> Actions:
    """Over or being deleted: an unfinished pod goes, a finished one stays.

    After a failure the agent lets the placeholders end with a code of their own, which the pod then
    shows; a pod whose placeholders nobody ended would wait for ever, so it is deleted.
    """
    if POD_FINALIZER not in view.restore.metadata.finalizers:
        return ()
    pod = view.own_pod
    failed = find(view.restore.status.conditions, ConditionType.FAILED)
    if pod is None or (over and failed is None) or pod.has_ended:
        return _release(view)
    since = failed.last_transition_time if failed else None
    if failed is not None and age_s(since, view.now) < GIVE_UP_PATIENCE_S:
        return (Requeue(after_s=LOOK_AGAIN_S),)
    return (DeletePod(name=pod.name, uid=pod.uid), *_release(view))


def _release(view: RestoreView) -> Actions:
    if POD_FINALIZER in view.restore.metadata.finalizers:
        return (SetFinalizer(name=POD_FINALIZER, present=False),)
    return ()

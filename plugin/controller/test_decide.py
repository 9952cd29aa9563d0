# SPDX-License-Identifier: Apache-2.0
"""Decisions, without a cluster: one view in, actions out."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from torpor.plugin.api import codec
from torpor.plugin.api.common import DATA_FINALIZER
from torpor.plugin.api.conditions import condition, find
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType, Reason
from torpor.plugin.api.v1alpha1 import Checkpoint, CheckpointStore, Restore
from torpor.plugin.controller import checkpoint, restore, store
from torpor.plugin.controller.actions import (
    Actions,
    CreatePod,
    DeletePod,
    Requeue,
    SetFinalizer,
    SetNodeLabel,
    SetStatus,
)
from torpor.plugin.controller.observed import NodeView, view_pod
from torpor.plugin.controller.podtemplate import HelperImage

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
POD: JsonObject = {
    "metadata": {"name": "p", "namespace": "n", "uid": "pod-uid"},
    "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]},
    "status": {"phase": "Running"},
}
NODES = (NodeView(name="a", ready=True), NodeView(name="b", ready=True))
STORE = codec.decode(
    CheckpointStore,
    {"metadata": {"name": "s"}, "spec": {"volume": {"hostPath": {"path": "/s"}}, "default": True}},
)


def pod(changes: JsonObject | None = None, **spec: object) -> Any:
    body = copy.deepcopy(POD)
    body["spec"] |= spec
    for part, values in (changes or {}).items():
        body[part] |= values
    return view_pod(body)


def checkpoint_view(
    *conditions: tuple[str, bool, str],
    spec: JsonObject | None = None,
    metadata: JsonObject | None = None,
    status: JsonObject | None = None,
    **changes: Any,
) -> checkpoint.CheckpointView:
    listed = [codec.encode(condition(*entry, now=NOW)) for entry in conditions]
    data = {
        "metadata": {"name": "ck", "namespace": "n", "uid": "u", "generation": 1,
                     "creationTimestamp": "2026-05-01T11:59:50Z", **(metadata or {})},
        "spec": {"podRef": {"name": "p"}, **(spec or {})},
        "status": {"conditions": listed, **(status or {})},
    }  # fmt: skip
    view = checkpoint.CheckpointView(
        checkpoint=codec.decode(Checkpoint, data), pod=pod(), nodes=NODES, stores=(STORE,), now=NOW
    )
    return replace(view, **changes)


def reason(actions: Actions, kind: str = ConditionType.READY) -> str:
    for action in actions:
        if isinstance(action, SetStatus) and (found := find(action.conditions, kind)):
            return f"{found.status}/{found.reason}"
    return ""


def of_type(actions: Actions, kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


ASSIGNED = ("Assigned", True, "Assigned")
CAPTURED = ("Captured", True, "Completed")
STORED = ("Stored", True, "Completed")
WORKING = {"nodeName": "a", "podUID": "pod-uid", "storeName": "s"}


def test_new_checkpoint_is_assigned() -> None:
    actions = checkpoint.decide(checkpoint_view())
    assert reason(actions, "Assigned") == "True/Assigned"
    assert of_type(actions, SetNodeLabel) == [SetNodeLabel(node_name="a")]
    (written,) = of_type(actions, SetStatus)
    assert written.fields.items() >= WORKING.items()
    kinds = [type(action) for action in actions]
    assert kinds.index(SetFinalizer) < kinds.index(SetStatus), "held before an agent may begin"


@pytest.mark.parametrize(
    ("seen", "spec", "wanted"),
    [
        (None, {}, Reason.POD_NOT_FOUND),
        (pod({"metadata": {"deletionTimestamp": "x"}}), {}, Reason.POD_DELETING),
        (pod(hostNetwork=True), {}, Reason.HOST_NETWORK_POD),
        (pod(hostPID=True), {}, Reason.REFUSED),
        (
            pod({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
            {},
            Reason.STATIC_POD,
        ),
        (pod({"metadata": {"ownerReferences": [{"kind": "Node"}]}}), {}, Reason.STATIC_POD),
        (pod({"status": {"phase": "Succeeded"}}), {}, Reason.POD_NOT_RUNNING),
        (pod(), {"podRef": {"name": "p", "uid": "older"}}, Reason.POD_REPLACED),
        (pod(), {"containers": ["absent"]}, Reason.CONTAINER_NOT_FOUND),
        (pod(), {"storeRef": {"name": "absent"}}, Reason.STORE_NOT_FOUND),
        (
            pod(initContainers=[{"name": "proxy", "restartPolicy": "Always"}]),
            {},
            Reason.REFUSED,
        ),
    ],
)
def test_bad_requests_end_at_once(seen: Any, spec: JsonObject, wanted: Reason) -> None:
    actions = checkpoint.decide(checkpoint_view(spec=spec, pod=seen))
    assert reason(actions) == f"False/{wanted}"
    assert reason(actions, "Failed") == f"True/{wanted}"
    assert not of_type(actions, SetNodeLabel), "no agent may see it"


def test_pending_pod_is_waited_for_until_the_timeout() -> None:
    pending = pod({"status": {"phase": "Pending"}})
    actions = checkpoint.decide(checkpoint_view(pod=pending))
    assert reason(actions) == "False/Pending"
    assert of_type(actions, Requeue)
    later = NOW + timedelta(minutes=6)
    assert reason(checkpoint.decide(checkpoint_view(pod=pending, now=later)), "Failed")


def test_store_is_the_default_or_the_only_one() -> None:
    other = replace(STORE, metadata=replace(STORE.metadata, name="o"), spec=replace(
        STORE.spec, default=False))  # fmt: skip
    assert checkpoint.default_store((other, STORE)) is STORE
    assert checkpoint.default_store((other,)) is other
    assert checkpoint.default_store((other, other)) is None
    assert reason(checkpoint.decide(checkpoint_view(stores=(other, other)))) == (
        "False/StoreNotFound"
    )
    unmounted = replace(
        STORE,
        status=replace(STORE.status, conditions=(condition("Ready", False, "NotMounted"),)),
    )
    assert reason(checkpoint.decide(checkpoint_view(stores=(unmounted,)))) == "False/StoreNotFound"


def test_progress_is_passed_on() -> None:
    view = checkpoint_view(ASSIGNED, ("Captured", False, "InProgress"), status=WORKING)
    assert reason(checkpoint.decide(view)) == "False/InProgress"


@pytest.mark.parametrize("kind", ["Captured", "Stored"])
def test_failure_of_the_agent_is_the_end(kind: str) -> None:
    view = checkpoint_view(ASSIGNED, (kind, False, "Refused"), status=WORKING)
    actions = checkpoint.decide(view)
    assert reason(actions) == "False/Refused"
    assert reason(actions, "Failed") == "True/Refused"


@pytest.mark.parametrize(
    "nodes",
    [(), (NodeView(name="a", ready=False, since=NOW - timedelta(minutes=2)),)],
    ids=["gone", "not ready"],
)
def test_lost_node_is_the_end(nodes: tuple[NodeView, ...]) -> None:
    view = checkpoint_view(ASSIGNED, status=WORKING, nodes=nodes)
    assert reason(checkpoint.decide(view), "Failed") == "True/NodeLost"


def test_short_absence_of_a_node_is_not() -> None:
    nodes = (NodeView(name="a", ready=False, since=NOW - timedelta(seconds=5)),)
    view = checkpoint_view(ASSIGNED, status=WORKING, nodes=nodes)
    assert reason(checkpoint.decide(view), "Failed") == ""


def test_timeout_is_the_end() -> None:
    view = checkpoint_view(ASSIGNED, status=WORKING, now=NOW + timedelta(minutes=5, seconds=31))
    assert reason(checkpoint.decide(view), "Failed") == "True/Timeout"
    view = checkpoint_view(ASSIGNED, status=WORKING, now=NOW + timedelta(minutes=5))
    assert reason(checkpoint.decide(view), "Failed") == ""


def test_ready_needs_captured_and_stored() -> None:
    only = checkpoint_view(ASSIGNED, CAPTURED, status=WORKING)
    assert reason(checkpoint.decide(only)) == "False/InProgress"
    both = checkpoint_view(ASSIGNED, CAPTURED, STORED, status=WORKING)
    assert reason(checkpoint.decide(both)) == "True/Completed"


def test_a_stopping_pod_is_taken_when_its_own_hook_asks() -> None:
    stopping = pod({"metadata": {"deletionTimestamp": "x"}})
    refused = checkpoint.decide(checkpoint_view(pod=stopping))
    assert reason(refused, "Failed") == "True/PodDeleting"
    labels = {"labels": {"torpor.dev/requested-by": "hook"}}
    taken = checkpoint.decide(checkpoint_view(pod=stopping, metadata=labels))
    assert reason(taken, "Assigned") == "True/Assigned"


def test_stop_deletes_that_very_pod_first() -> None:
    spec = {"afterCheckpoint": "Stop"}
    view = checkpoint_view(ASSIGNED, CAPTURED, STORED, spec=spec, status=WORKING)
    actions = checkpoint.decide(view)
    assert of_type(actions, DeletePod) == [DeletePod(name="p", uid="pod-uid")]
    assert reason(actions) == ""
    for seen in (
        None,
        pod({"metadata": {"deletionTimestamp": "x"}}),
        pod({"metadata": {"uid": "n"}}),
    ):
        actions = checkpoint.decide(replace(view, pod=seen))
        assert reason(actions) == "True/Completed"
        assert reason(actions, "SourceStopped") == "True/Completed"
        assert not of_type(actions, DeletePod)


@pytest.mark.parametrize("end", [("Ready", True, "Completed"), ("Failed", True, "Refused")])
def test_the_end_stays_the_end(end: tuple[str, bool, str]) -> None:
    assert checkpoint.decide(checkpoint_view(ASSIGNED, end, status=WORKING, pod=None)) == ()


DELETING = {"deletionTimestamp": "2026-05-01T11:59:59Z", "finalizers": [DATA_FINALIZER]}
LET_GO = [SetFinalizer(name=DATA_FINALIZER, present=False)]


def test_deletion_waits_for_the_data() -> None:
    view = checkpoint_view(ASSIGNED, metadata=DELETING, status=WORKING)
    assert not of_type(checkpoint.decide(view), SetFinalizer)
    deleted = checkpoint_view(("DataDeleted", True, "Completed"), metadata=DELETING, status=WORKING)
    assert of_type(checkpoint.decide(deleted), SetFinalizer) == LET_GO
    kept = checkpoint_view(metadata=DELETING, status=WORKING, spec={"deletionPolicy": "Retain"})
    assert of_type(checkpoint.decide(kept), SetFinalizer) == LET_GO
    early = checkpoint_view(metadata=DELETING)
    assert of_type(checkpoint.decide(early), SetFinalizer) == LET_GO
    forced = DELETING | {"annotations": {"torpor.dev/force-delete": "true"}}
    view = checkpoint_view(metadata=forced, status=WORKING)
    assert of_type(checkpoint.decide(view), SetFinalizer) == LET_GO


def test_deletion_goes_to_a_node_that_is_there() -> None:
    labelled = DELETING | {"labels": {"torpor.dev/node": "a"}}
    view = checkpoint_view(metadata=labelled, status=WORKING)
    assert not of_type(checkpoint.decide(view), SetNodeLabel)
    nodes = (NodeView(name="a", ready=False), NodeView(name="b", ready=True))
    actions = checkpoint.decide(replace(view, nodes=nodes))
    assert of_type(actions, SetNodeLabel) == [SetNodeLabel(node_name="b")]


def test_deletion_that_hangs_says_how_to_let_go() -> None:
    view = checkpoint_view(metadata=DELETING, status=WORKING, now=NOW + timedelta(minutes=6))
    (written,) = of_type(checkpoint.decide(view), SetStatus)
    assert "torpor.dev/force-delete=true" in written.conditions[0].message


TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "i"}]}}


def source(*conditions: tuple[str, bool, str], **metadata: object) -> Checkpoint:
    status = {"podTemplate": TEMPLATE, "containers": [{"name": "c"}]}
    return checkpoint_view(*conditions, status=status, metadata=metadata).checkpoint


READY = ("Ready", True, "Completed")
CREATED = ("PodCreated", True, "PodCreated")


def restored_pod(**changes: JsonObject) -> Any:
    metadata = {"annotations": {"torpor.dev/restore-uid": "u"}} | changes.get("metadata", {})
    spec = changes.get("spec", {})
    return pod(
        {"metadata": metadata, "status": changes.get("status", {"phase": "Pending"})}, **spec
    )


def restore_view(
    *conditions: tuple[str, bool, str],
    spec: JsonObject | None = None,
    metadata: JsonObject | None = None,
    **changes: Any,
) -> restore.RestoreView:
    listed = [codec.encode(condition(*entry, now=NOW)) for entry in conditions]
    status: JsonObject = {"conditions": listed}
    if CREATED in conditions:
        status |= {"podName": "p", "podUID": "pod-uid"}
    data = {
        "metadata": {"name": "r", "namespace": "n", "uid": "u", "generation": 1,
                     "creationTimestamp": "2026-05-01T11:59:50Z", **(metadata or {})},
        "spec": {"checkpointRef": {"name": "ck"}, **(spec or {})},
        "status": status,
    }  # fmt: skip
    view = restore.RestoreView(
        restore=codec.decode(Restore, data),
        checkpoint=source(READY),
        pod=restored_pod() if CREATED in conditions else None,
        nodes=NODES,
        helper=HelperImage(name="torpor"),
        now=NOW,
    )
    return replace(view, **changes)


def test_restore_creates_the_pod_and_holds_it() -> None:
    actions = restore.decide(restore_view())
    assert [type(action) for action in actions] == [SetFinalizer, CreatePod]


def test_restore_takes_up_the_pod_it_created() -> None:
    actions = restore.decide(restore_view(pod=restored_pod()))
    assert reason(actions, "PodCreated") == "True/PodCreated"
    assert not of_type(actions, CreatePod)
    (written,) = of_type(actions, SetStatus)
    assert written.fields["podUID"] == "pod-uid"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"checkpoint": source(("Failed", True, "Refused"))}, Reason.CHECKPOINT_FAILED),
        (
            {"checkpoint": source(READY, deletionTimestamp="2026-05-01T11:59:50Z")},
            Reason.CHECKPOINT_NOT_FOUND,
        ),
        ({"checkpoint": None, "now": NOW + timedelta(minutes=1)}, Reason.CHECKPOINT_NOT_FOUND),
        ({"checkpoint": checkpoint_view(READY).checkpoint}, Reason.BAD_IMAGE),
        ({"pod": pod()}, Reason.POD_NAME_TAKEN),
        ({"spec": {"nodeName": "absent"}}, Reason.NO_NODE),
    ],
)
def test_bad_restores_end(changes: Any, wanted: Reason) -> None:
    actions = restore.decide(restore_view(**changes))
    assert reason(actions, "Failed") == f"True/{wanted}"
    assert not of_type(actions, CreatePod)


@pytest.mark.parametrize("seen", [None, source(), source(ASSIGNED)])
def test_restore_waits_for_the_checkpoint(seen: Checkpoint | None) -> None:
    actions = restore.decide(restore_view(checkpoint=seen))
    assert reason(actions) == "False/CheckpointNotReady"
    assert reason(actions, "Failed") == ""
    assert of_type(actions, Requeue)


def test_node_without_room_is_told_and_ends_at_the_timeout() -> None:
    why = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes: Insufficient memory"}
    waiting = restored_pod(spec={"nodeName": ""}, status={"phase": "Pending", "conditions": [why]})
    actions = restore.decide(restore_view(CREATED, pod=waiting))
    assert reason(actions) == "False/Unschedulable"
    later = restore_view(
        CREATED, ("Ready", False, "Unschedulable"), pod=waiting, now=NOW + timedelta(minutes=11)
    )
    actions = restore.decide(later)
    assert reason(actions, "Failed") == "True/Timeout"
    assert of_type(actions, DeletePod) == [DeletePod(name="p", uid="pod-uid")]


def test_scheduled_pod_is_shown_to_its_agent() -> None:
    actions = restore.decide(restore_view(CREATED))
    assert of_type(actions, SetNodeLabel) == [SetNodeLabel(node_name="a")]
    assert reason(actions, "Assigned") == "True/Assigned"


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (None, Reason.POD_NOT_FOUND),
        (restored_pod(metadata={"uid": "another"}), Reason.POD_NOT_FOUND),
        (restored_pod(metadata={"deletionTimestamp": "x"}), Reason.POD_NOT_FOUND),
        (restored_pod(status={"phase": "Failed"}), Reason.POD_FAILED),
    ],
)
def test_a_pod_that_went_is_a_failure(seen: Any, wanted: Reason) -> None:
    assert reason(restore.decide(restore_view(CREATED, pod=seen)), "Failed") == f"True/{wanted}"


def test_failed_restore_never_becomes_a_fresh_start() -> None:
    view = restore_view(CREATED, ASSIGNED, ("Restored", False, "ImageMismatch"))
    actions = restore.decide(view)
    assert reason(actions, "Failed") == "True/ImageMismatch"
    assert not of_type(actions, CreatePod)


FAILED = ("Failed", True, "ImageMismatch")
HELD = {"finalizers": [restore.POD_FINALIZER]}


def test_placeholders_that_gave_up_stay_to_be_seen() -> None:
    state = {"terminated": {"exitCode": 124}}
    seen = restored_pod(status={"containerStatuses": [{"name": "c", "state": state}]})
    view = restore_view(CREATED, ASSIGNED, FAILED, metadata=HELD, pod=seen)
    assert [type(action) for action in restore.decide(view)] == [SetFinalizer]


def test_placeholders_that_nobody_ended_are_deleted() -> None:
    view = restore_view(CREATED, ASSIGNED, FAILED, metadata=HELD)
    assert [type(action) for action in restore.decide(view)] == [Requeue]
    later = replace(view, now=NOW + timedelta(minutes=1))
    assert [type(action) for action in restore.decide(later)] == [DeletePod, SetFinalizer]


def test_ready_when_kubelet_saw_all_containers_started() -> None:
    back = ("Restored", True, "Completed")
    waiting = restored_pod(status={"phase": "Running", "containerStatuses": [{"name": "c"}]})
    assert reason(restore.decide(restore_view(CREATED, ASSIGNED, back, pod=waiting))) == (
        "False/InProgress"
    )
    started = {"phase": "Running", "containerStatuses": [{"name": "c", "started": True}]}
    view = restore_view(CREATED, ASSIGNED, back, pod=restored_pod(status=started))
    assert reason(restore.decide(view)) == "True/Completed"


def test_stuck_pod_says_why() -> None:
    state = {"waiting": {"reason": "ErrImageNeverPull", "message": "not present"}}
    stuck = {"phase": "Pending", "containerStatuses": [{"name": "c", "state": state}]}
    actions = restore.decide(restore_view(CREATED, ASSIGNED, pod=restored_pod(status=stuck)))
    (written,) = of_type(actions, SetStatus)
    assert "ErrImageNeverPull" in written.conditions[0].message


def test_deleted_restore_takes_an_unfinished_pod_along() -> None:
    metadata = {"deletionTimestamp": "2026-05-01T11:59:59Z", "finalizers": [restore.POD_FINALIZER]}
    actions = restore.decide(restore_view(CREATED, metadata=metadata))
    assert of_type(actions, DeletePod)
    assert of_type(actions, SetFinalizer) == [
        SetFinalizer(name=restore.POD_FINALIZER, present=False)
    ]
    done = restore.decide(restore_view(CREATED, READY, metadata=metadata))
    assert not of_type(done, DeletePod), "a restored pod outlives its Restore"


def test_store_is_ready_when_mounted() -> None:
    view = store.StoreView(store=STORE, mounts={"s": "/stores/s"}, now=NOW)
    assert reason(store.decide(view)) == "True/Mounted"
    assert reason(store.decide(replace(view, mounts={}))) == "False/NotMounted"

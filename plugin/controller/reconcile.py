# SPDX-License-Identifier: Apache-2.0
"""The thin side of the controller: look at the cluster, decide, carry out.

A reconcile may be repeated at any point, after a restart too: finalizer and label come before
the status that lets an agent begin, a pod is created under a name that depends on the Restore
only, and deletions name the UID that they mean.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from torpor.plugin.api import codec, conditions
from torpor.plugin.api.common import NODE_LABEL, node_label
from torpor.plugin.api.conditions import Condition
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType, Reason, is_failure
from torpor.plugin.api.v1alpha1 import Checkpoint, CheckpointStore, Restore
from torpor.plugin.controller import checkpoint, restore, store
from torpor.plugin.controller.actions import (
    Action,
    Actions,
    CreatePod,
    DeletePod,
    Requeue,
    SetFinalizer,
    SetNodeLabel,
    SetStatus,
    Stamp,
    age_s,
)
from torpor.plugin.controller.metrics import Metrics
from torpor.plugin.controller.observed import PodView, view_node, view_pod
from torpor.plugin.controller.podtemplate import HelperImage
from torpor.plugin.k8s.apply import StatusWriter, conditions_of
from torpor.plugin.k8s.client import Client
from torpor.plugin.k8s.errors import AlreadyExists, Conflict, Forbidden, Invalid, NotFound
from torpor.plugin.k8s.events import Event, Recorder
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS, RESTORES, STORES, Kind
from torpor.plugin.k8s.queue import Key
from torpor.plugin.k8s.watch import Watcher

log = logging.getLogger(__name__)

M = TypeVar("M")
Observe = Callable[[JsonObject], tuple[Actions, PodView | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What reconciles share: the API, memory of our kinds, and settings."""

    client: Client
    checkpoints: Watcher
    restores: Watcher
    stores: Watcher
    nodes: Watcher
    recorder: Recorder
    metrics: Metrics
    helper: HelperImage
    mounts: Mapping[str, str] | None
    manager: str

    def pod(self, namespace: str, name: str) -> PodView | None:
        """A pod as it is now; memory would be too old to decide on."""
        try:
            return view_pod(self.client.get(PODS, namespace, name)) if name else None
        except NotFound:
            return None


class Reconciler:
    """Brings objects of one kind forward."""

    def __init__(self, cluster: Cluster, kind: Kind, watcher: Watcher, observe: Observe) -> None:
        self.kind = kind
        self._cluster = cluster
        self._watcher = watcher
        self._observe = observe
        self._writer = StatusWriter(cluster.client, kind, cluster.manager)

    def reconcile(self, key: Key) -> float | None:
        """Do what is to be done for an object; returns when to look again, in seconds."""
        item = self._watcher.get(key)
        if item is None:
            return None
        actions, pod = self._observe(item)
        after_s: float | None = None
        try:
            for action in actions:
                if isinstance(action, Requeue):
                    after_s = action.after_s
                else:
                    item = self._perform(action, item, pod)
        except (NotFound, Conflict) as error:
            log.debug("%s %s: read again: %s", self.kind.kind, key, error)
            return 0.2
        finally:
            self._watcher.remember(item)
        return after_s

    def _perform(self, action: Action, item: JsonObject, pod: PodView | None) -> JsonObject:
        if isinstance(action, SetStatus):
            return self._set_status(action, item, pod)
        if isinstance(action, SetNodeLabel):
            labels = {NODE_LABEL: node_label(action.node_name)}
            return self._merge(item, {"labels": labels})
        if isinstance(action, SetFinalizer):
            return self._set_finalizer(action, item)
        if isinstance(action, CreatePod):
            return self._create_pod(action, item)
        if isinstance(action, DeletePod):
            self._delete_pod(action, item)
        return item

    def _merge(self, item: JsonObject, metadata: JsonObject) -> JsonObject:
        """Change metadata, if the object is still the version that was decided on."""
        current = item["metadata"]
        if all(_contains(current.get(name), value) for name, value in metadata.items()):
            return item
        guarded = {**metadata, "resourceVersion": current["resourceVersion"]}
        namespace, name = str(current.get("namespace") or ""), str(current["name"])
        return self._cluster.client.merge(self.kind, namespace, name, {"metadata": guarded})

    def _set_finalizer(self, action: SetFinalizer, item: JsonObject) -> JsonObject:
        before = list(item["metadata"].get("finalizers") or [])
        after = [name for name in before if name != action.name]
        if action.present:
            after.append(action.name)
        return item if after == before else self._merge(item, {"finalizers": after})

    def _create_pod(self, action: CreatePod, item: JsonObject) -> JsonObject:
        namespace = str(item["metadata"]["namespace"])
        try:
            created = self._cluster.client.create(PODS, namespace, action.body)
        except AlreadyExists as error:
            raise Conflict(error.what, subject=error.subject) from error
        except (Invalid, Forbidden) as error:
            stamp = Stamp(generation=int(item["metadata"]["generation"]), now=datetime.now(UTC))
            return self._set_status(stamp.failed(Reason.POD_REJECTED, error.what), item, None)
        name = created["metadata"]["name"]
        log.info("%s/%s: pod %s created", namespace, item["metadata"]["name"], name)
        return self._perform_again(item)

    def _perform_again(self, item: JsonObject) -> JsonObject:
        """Decide once more after a creation, on what is there now."""
        actions, pod = self._observe(item)
        for action in actions:
            if isinstance(action, SetStatus):
                item = self._perform(action, item, pod)
        return item

    def _delete_pod(self, action: DeletePod, item: JsonObject) -> None:
        namespace = str(item["metadata"]["namespace"])
        try:
            self._cluster.client.delete(
                PODS, namespace, action.name, uid=action.uid, grace_period_s=1
            )
        except NotFound:
            return
        log.info("%s/%s: pod %s deleted", namespace, item["metadata"]["name"], action.name)

    def _set_status(self, action: SetStatus, item: JsonObject, pod: PodView | None) -> JsonObject:
        status = item.get("status") or {}
        before = conditions_of(status)
        if not _is_news(action, status, before):
            return item
        written = self._writer.write(item, action.fields, action.conditions)
        for turned in conditions.changed(before, action.conditions):
            if turned.type == ConditionType.READY:
                self._announce(turned, written, pod)
        return written

    def _announce(self, turned: Condition, item: JsonObject, pod: PodView | None) -> None:
        """Tell of a new state of Ready: log, event, and at the end the metrics."""
        metadata = item["metadata"]
        over = turned.status == "True" or is_failure(turned.reason)
        level = logging.WARNING if turned.status != "True" and over else logging.INFO
        where = f"{metadata.get('namespace', '')}/{metadata['name']}"
        extra = {self.kind.kind.lower(): where}
        log.log(level, "%s %s: %s: %s", self.kind.kind, where, turned.reason, turned.message,
                extra=extra)  # fmt: skip
        event = Event(
            reason=turned.reason,
            action=self.kind.kind,
            note=turned.message or turned.reason,
            warning=level == logging.WARNING,
        )
        self._cluster.recorder.emit(event, item, pod.body if pod else None)
        if over and self.kind is not STORES:
            created = codec.parse_time(metadata["creationTimestamp"])
            ready = turned.status == "True"
            duration_s = age_s(created, datetime.now(UTC))
            self._cluster.metrics.ended(
                self.kind.kind, turned.reason, ready=ready, duration_s=duration_s
            )
            if ready and self.kind is CHECKPOINTS:
                self._cluster.metrics.checkpointed(codec.decode(Checkpoint, item))


def reconcilers(cluster: Cluster) -> tuple[Reconciler, ...]:
    """One for each kind."""
    return (
        Reconciler(cluster, STORES, cluster.stores, lambda item: _see_store(cluster, item)),
        Reconciler(
            cluster, CHECKPOINTS, cluster.checkpoints, lambda item: _see_checkpoint(cluster, item)
        ),
        Reconciler(cluster, RESTORES, cluster.restores, lambda item: _see_restore(cluster, item)),
    )


def _see_checkpoint(cluster: Cluster, item: JsonObject) -> tuple[Actions, PodView | None]:
    model = codec.decode(Checkpoint, item)
    pod = cluster.pod(model.metadata.namespace, model.spec.pod_ref.name)
    view = checkpoint.CheckpointView(
        checkpoint=model,
        pod=pod,
        nodes=tuple(map(view_node, cluster.nodes.all())),
        stores=tuple(codec.decode(CheckpointStore, body) for body in cluster.stores.all()),
        now=datetime.now(UTC),
    )
    return checkpoint.decide(view), pod


def _see_restore(cluster: Cluster, item: JsonObject) -> tuple[Actions, PodView | None]:
    model = codec.decode(Restore, item)
    namespace = model.metadata.namespace
    source = cluster.checkpoints.get(Key(namespace, model.spec.checkpoint_ref.name))
    from_checkpoint = codec.decode(Checkpoint, source) if source else None
    pod = cluster.pod(namespace, restore.target_pod_name(model, from_checkpoint))
    view = restore.RestoreView(
        restore=model,
        checkpoint=from_checkpoint,
        pod=pod,
        nodes=tuple(map(view_node, cluster.nodes.all())),
        helper=cluster.helper,
        now=datetime.now(UTC),
    )
    return restore.decide(view), view.own_pod


def _see_store(cluster: Cluster, item: JsonObject) -> tuple[Actions, PodView | None]:
    if cluster.mounts is None:
        return (), None
    model = codec.decode(CheckpointStore, item)
    view = store.StoreView(store=model, mounts=cluster.mounts, now=datetime.now(UTC))
    return store.decide(view), None


def _is_news(action: SetStatus, status: JsonObject, before: conditions.Conditions) -> bool:
    """True when the write would change more than times."""
    if any(status.get(name) != codec.encode(value) for name, value in action.fields.items()):
        return True
    known = {(c.type, c.status, c.reason, c.message) for c in before}
    return any((c.type, c.status, c.reason, c.message) not in known for c in action.conditions)


def _contains(current: object, wanted: object) -> bool:
    if isinstance(wanted, dict) and isinstance(current, dict):
        return wanted.items() <= current.items()
    return current == wanted

# SPDX-License-Identifier: Apache-2.0
"""What a call of the hook leads to: a Checkpoint object, watched until it is done.

The hook has no checkpointing of its own. It makes the object that a user would make, and
controller and agent do the rest, so that a checkpoint asked for on the node is listed, limited
and deleted like any other.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torpor.engine.errors import Denied, Error, Refused, Vanished
from torpor.plugin.api.codec import decode
from torpor.plugin.api.common import (
    GROUP,
    ON_STOP_ANNOTATION,
    REQUESTED_BY_HOOK,
    REQUESTED_BY_LABEL,
)
from torpor.plugin.api.conditions import Condition, find
from torpor.plugin.api.duration import format_duration
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType
from torpor.plugin.api.v1alpha1 import AfterCheckpoint, Checkpoint
from torpor.plugin.hook.caller import Caller
from torpor.plugin.k8s.client import Client, Selector
from torpor.plugin.k8s.errors import AlreadyExists, NotFound, Unreachable
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS
from torpor.plugin.proto import hook_pb2 as pb

log = logging.getLogger(__name__)

REASON_ANNOTATION = f"{GROUP}/reason"
LONGEST_WAIT_S = 300.0
POLL_S = 0.2
RETRY_S = 1.0
REASON_LIMIT = 1024
"""Kubernetes' longest name is 253; what is added to the pod's name takes less than 20."""
NAME_ROOM = 230

Pod = Mapping[str, Any]


class Backend(Protocol):
    """What the service needs."""

    def checkpoint(
        self, caller: Caller, request: pb.CheckpointRequest
    ) -> Iterator[pb.CheckpointEvent]:
        """Progress, then exactly one result; raises `Error` when it is not begun."""

    def health(self) -> pb.HealthReply:
        """That the service lives, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time, to be replaced in tests."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class ApiBackend:
    """Makes Checkpoints through the API server."""

    def __init__(
        self, client: Client, node_name: str, *, version: str = "", clock: Clock | None = None
    ) -> None:
        self._client = client
        self._node_name = node_name
        self._version = version
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    def health(self) -> pb.HealthReply:
        """That the service lives, and where."""
        return pb.HealthReply(node=self._node_name, version=self._version)

    def checkpoint(
        self, caller: Caller, request: pb.CheckpointRequest
    ) -> Iterator[pb.CheckpointEvent]:
        """Make the Checkpoint and report until it is done or the wait is over.

        Raises:
            Denied, Refused, Vanished: it was not begun.
        """
        wait_s = min(request.wait_ms / 1000 or LONGEST_WAIT_S, LONGEST_WAIT_S)
        deadline = self._clock.monotonic() + wait_s
        pod = self._pod_of(caller, request)
        uid = str(pod["metadata"]["uid"])
        stopping = bool(pod["metadata"].get("deletionTimestamp"))
        with self._lock:
            if uid in self._busy and not stopping:
                raise Refused(
                    "a checkpoint of this pod is already being waited for",
                    subject=_subject(pod),
                    remedy="wait for it",
                )
            self._busy.add(uid)
        try:
            name = self._create(pod, request, wait_s, stopping=stopping)
            log.info("%s: Checkpoint %s made for %s", _subject(pod), name, caller)
            yield from self._follow(str(pod["metadata"]["namespace"]), name, deadline)
        finally:
            with self._lock:
                self._busy.discard(uid)

    def _pod_of(self, caller: Caller, request: pb.CheckpointRequest) -> Pod:
        if caller.container_id:
            pod = self._pod_with_container(caller.container_id)
            asked = (request.namespace, request.pod)
            own = (pod["metadata"]["namespace"], pod["metadata"]["name"])
            if any(asked) and asked != own:
                raise _denied(caller, f"a container may only ask for its own pod, {'/'.join(own)}")
            if ON_STOP_ANNOTATION not in (pod["metadata"].get("annotations") or {}):
                raise _denied(caller, f"its pod has no annotation {ON_STOP_ANNOTATION}")
            return pod
        if caller.uid != 0:
            raise _denied(caller, "outside of containers only uid 0 may ask")
        if request.container_id:
            return self._pod_with_container(request.container_id)
        return self._pod_named(request.namespace, request.pod)

    def _pod_with_container(self, container_id: str) -> Pod:
        selector = Selector(fields=f"spec.nodeName={self._node_name}")
        for pod in self._client.list(PODS, selector).items:
            for status in pod.get("status", {}).get("containerStatuses") or ():
                if str(status.get("containerID") or "").partition("://")[2] == container_id:
                    return pod
        raise Vanished(
            "no pod of this node has the container",
            subject=f"container {container_id[:12]}",
            remedy="ask for a running container of a pod",
        )

    def _pod_named(self, namespace: str, name: str) -> Pod:
        subject = f"{namespace}/{name}"
        if not namespace or not name:
            raise Refused("no pod is named", remedy="give --namespace and --pod")
        try:
            pod = self._client.get(PODS, namespace, name)
        except NotFound as error:
            raise Vanished("no such pod", subject=subject, remedy="check the name") from error
        if pod.get("spec", {}).get("nodeName") != self._node_name:
            raise Refused(
                "the pod is not on this node",
                subject=subject,
                cause=f"this is {self._node_name}",
                remedy="ask on the pod's node, or make a Checkpoint with kubectl",
            )
        return pod

    def _create(
        self, pod: Pod, request: pb.CheckpointRequest, wait_s: float, *, stopping: bool
    ) -> str:
        """Name of the Checkpoint; containers of one pod that stop together share one."""
        metadata = pod["metadata"]
        stop = request.after == pb.AFTER_STOP
        after = AfterCheckpoint.STOP if stop else AfterCheckpoint.CONTINUE
        body: JsonObject = {
            "metadata": {
                "labels": {REQUESTED_BY_LABEL: REQUESTED_BY_HOOK},
                "annotations": {REASON_ANNOTATION: request.reason[:REASON_LIMIT]},
            },
            "spec": {
                "podRef": {"name": metadata["name"], "uid": metadata["uid"]},
                "afterCheckpoint": after.value,
                "timeout": format_duration(max(wait_s, 1.0)),
            },
        }
        stem = str(metadata["name"])[:NAME_ROOM].rstrip("-.")
        if stopping:
            body["metadata"]["name"] = f"{stem}-stop-{str(metadata['uid'])[:8]}"
        else:
            body["metadata"]["generateName"] = f"{stem}-hook-"
        try:
            made = self._client.create(CHECKPOINTS, str(metadata["namespace"]), body)
        except AlreadyExists:
            return str(body["metadata"]["name"])
        return str(made["metadata"]["name"])

    def _follow(self, namespace: str, name: str, deadline: float) -> Iterator[pb.CheckpointEvent]:
        told: tuple[str, str, int] | None = None
        full_name = f"{namespace}/{name}"
        while True:
            checkpoint = self._read(namespace, name, deadline)
            if checkpoint is None:
                yield _result(pb.OUTCOME_FAILED, full_name, "Vanished", "it was deleted")
                return
            ended = _ended(checkpoint, full_name)
            if ended is not None:
                yield ended
                return
            progress = checkpoint.status.progress
            if progress is not None:
                now = (progress.phase, progress.text, progress.percent or 0)
                if now != told:
                    told = now
                    yield _progress(full_name, *now)
            if self._clock.monotonic() >= deadline:
                yield _result(pb.OUTCOME_RUNNING, full_name, "InProgress", "the wait is over")
                return
            self._clock.sleep(POLL_S)

    def _read(self, namespace: str, name: str, deadline: float) -> Checkpoint | None:
        """The object as it is now, or None when it is gone.

        Raises:
            Unreachable: the API server did not answer until the deadline.
        """
        while True:
            try:
                return decode(Checkpoint, self._client.get(CHECKPOINTS, namespace, name))
            except NotFound:
                return None
            except Unreachable as error:
                if self._clock.monotonic() >= deadline:
                    raise
                log.warning("%s/%s: could not be read: %s", namespace, name, error)
                self._clock.sleep(RETRY_S)


def refusal(error: Error) -> pb.CheckpointEvent:
    """The result of a call that was not begun."""
    text = "; remedy: ".join(part for part in (_sentence(error), error.remedy) if part)
    return _result(pb.OUTCOME_REFUSED, "", error.reason, text)


def _sentence(error: Error) -> str:
    parts = (error.subject, error.what, error.cause)
    return ": ".join(part for part in parts if part)


def _ended(checkpoint: Checkpoint, full_name: str) -> pb.CheckpointEvent | None:
    conditions = checkpoint.status.conditions
    for kind, outcome in (
        (ConditionType.READY, pb.OUTCOME_READY),
        (ConditionType.FAILED, pb.OUTCOME_FAILED),
    ):
        found: Condition | None = find(conditions, kind)
        if found is not None and found.status == "True":
            return _result(outcome, full_name, found.reason, found.message)
    return None


def _progress(full_name: str, phase: str, text: str, percent: int) -> pb.CheckpointEvent:
    progress = pb.Progress(checkpoint=full_name, phase=phase, text=text, percent=percent)
    return pb.CheckpointEvent(progress=progress)


def _result(outcome: pb.Outcome, full_name: str, reason: str, message: str) -> pb.CheckpointEvent:
    return pb.CheckpointEvent(
        result=pb.Result(outcome=outcome, checkpoint=full_name, reason=reason, message=message)
    )


def _subject(pod: Pod) -> str:
    return f"[{pod['metadata']['namespace']}/{pod['metadata']['name']}]"


def _denied(caller: Caller, cause: str) -> Denied:
    return Denied(
        "the caller may not ask for this",
        subject=f"hook, {caller}",
        cause=cause,
        remedy=f"annotate the pod with {ON_STOP_ANNOTATION}, or make a Checkpoint with kubectl",
    )

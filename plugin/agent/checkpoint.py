# SPDX-License-Identifier: Apache-2.0
"""One checkpoint on this node: find, cut, capture, store, verify, report.

With ``Continue`` the tasks run on when the engine returns, and the store takes its time
after that. With ``Stop`` the engine holds the tasks until the data is in the store, verified,
and the controller has deleted the pod; if anything fails until then, they run on.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from torpor.engine.errors import Error, Vanished
from torpor.engine.options import DumpOptions, DumpReport
from torpor.plugin.agent import podfacts, rootfs
from torpor.plugin.agent.context import Context, Deadline, PodDeleting, PodNotFound
from torpor.plugin.agent.dumpoptions import Filters, dump_options, not_as_asked
from torpor.plugin.agent.locate import (
    Container,
    StrangerInside,
    TolerateCallers,
    foreign_tasks,
    locate,
    pod_ips,
)
from torpor.plugin.agent.nodefacts import node_facts
from torpor.plugin.agent.podfacts import Facts
from torpor.plugin.agent.report import Reporter, persist
from torpor.plugin.agent.staging import JobFolder
from torpor.plugin.agent.storing import Storing
from torpor.plugin.agent.treefile import Grown
from torpor.plugin.api.common import REQUESTED_BY_HOOK, REQUESTED_BY_LABEL
from torpor.plugin.api.conditions import Condition, condition
from torpor.plugin.api.duration import format_duration, parse_duration_s
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.podrecord import record
from torpor.plugin.api.reasons import ConditionType, Reason
from torpor.plugin.api.v1alpha1 import AfterCheckpoint, Checkpoint, CheckpointedContainer
from torpor.plugin.k8s.errors import NotFound, Unreachable
from torpor.plugin.k8s.kinds import PODS
from torpor.plugin.store.base import SourceTree, StoredManifest
from torpor.plugin.store.manifest import CheckpointRef, ContainerFacts, Head

_log = logging.getLogger(__name__)
_LONG_PHASES = ("prepare memory", "write", "sync")
"""Of the engine; what is within the pause is told apart."""
_BREAKS_S = (0.1, 0.3, 1.0, 2.0, 4.0)
"""Between one attempt and the next: the commands of probes and `kubectl exec` come and go."""


def reference(checkpoint: Checkpoint) -> CheckpointRef:
    """Key of a Checkpoint in its store."""
    metadata = checkpoint.metadata
    return CheckpointRef(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid)


@dataclass(slots=True, kw_only=True)
class CheckpointJob:
    """The work on one Checkpoint."""

    context: Context
    checkpoint: Checkpoint
    folder: JobFolder
    report: Reporter
    deadline: Deadline = field(init=False)
    is_captured: bool = field(default=False, init=False)
    _storing: Storing = field(init=False)
    _instant: datetime = field(init=False)
    _stopped_at_s: float = field(default=0.0, init=False)
    _ahead_bytes: int = field(default=0, init=False)
    """In the store when the tasks were stopped."""
    _notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self.deadline = Deadline(
            limit_s=parse_duration_s(self.checkpoint.spec.timeout), subject=self._subject
        )
        self._instant = datetime.now(UTC)

    @property
    def _subject(self) -> str:
        metadata = self.checkpoint.metadata
        return f"checkpoint {metadata.namespace}/{metadata.name}"

    @property
    def _tolerance(self) -> TolerateCallers:
        return TolerateCallers(self.context.waiting_in)

    @property
    def _is_stop(self) -> bool:
        return self.checkpoint.spec.after_checkpoint is AfterCheckpoint.STOP

    def run(self) -> None:
        """Do all of it.

        Raises:
            Error: it failed; the workload runs on.
        """
        store = self.context.store(self.checkpoint.status.store_name)
        self.report.write(
            {"startedAt": datetime.now(UTC)},
            [self._condition(ConditionType.CAPTURED, False, Reason.IN_PROGRESS, "being captured")],
        )
        with Storing(
            store=store,
            ref=reference(self.checkpoint),
            deadline=self.deadline,
            progress=self.report.note,
        ) as self._storing:
            pod, containers, reports = self._dump()
            self.context.metrics.dumped(reports)
            if not self._is_stop:
                self._store(pod, containers, reports)

    # ---- the cut -----------------------------------------------------------------------

    def _dump(self) -> tuple[JsonObject, tuple[Container, ...], tuple[DumpReport, ...]]:
        """Dump all containers at one instant; tries again when something went meanwhile."""
        breaks = iter(_BREAKS_S)
        while True:
            self.deadline.check("capture")
            pod = self._pod()
            containers = self._locate(pod)
            try:
                with self._stage("dump"):
                    return pod, containers, self._dump_once(pod, containers)
            except Vanished as error:
                self._check_pod_is_there(error)
                length_s = next(breaks, None)
                if length_s is None or self.is_captured:
                    raise
                _log.info("%s: tried again in %g s: %s", self._subject, length_s, error)
            time.sleep(length_s)

    def _dump_once(
        self, pod: JsonObject, containers: tuple[Container, ...]
    ) -> tuple[DumpReport, ...]:
        self.folder.empty()
        self.folder.remember_cgroups(each.cgroup for each in containers)
        self._notes.clear()
        tree = self.folder.tree
        (tree / "images").mkdir(mode=0o700, parents=True)
        facts = Facts(
            cpu_flags=tuple(self.context.cpu_flags),
            pod_ips=tuple(pod_ips(pod)),
            data_links={
                each.name: rootfs.data_links(each, self.context.view) for each in containers
            },
        )
        podfacts.write(facts, tree)
        return self.context.engine.dump(
            [self._options(pod, each) for each in containers],
            while_frozen=lambda: self._capture(containers),
            commit=(lambda done: self._commit(pod, containers, done)) if self._is_stop else None,
            progress=self.report.note,
        )

    def _options(self, pod: JsonObject, container: Container) -> DumpOptions:
        return dump_options(
            self.checkpoint.spec,
            pod,
            container,
            self.folder.tree / "images" / container.name,
            filters=Filters(
                installed=self.context.view.seccomp_filters(container.init_pid),
                read=self.context.read_filter,
            ),
            left_s=max(1.0, self.deadline.left_s),
            follower=self._storing.following(f"images/{container.name}"),
        )

    def _capture(self, containers: tuple[Container, ...]) -> None:
        """What must be consistent with memory; runs while the tasks stand still."""
        self._instant, self._stopped_at_s = datetime.now(UTC), time.monotonic()
        self._ahead_bytes = self._storing.upload.stored_bytes
        view, tree = self.context.view, self.folder.tree
        for container in containers:
            strangers = foreign_tasks(container, view, self._tolerance)
            if strangers:
                raise Vanished(
                    "a command was started in the container just now",
                    subject=f"{self._subject}, container {container.name}",
                    cause=f"process {strangers[0].pid} ({strangers[0].name})",
                    remedy="end `kubectl exec` sessions, wait for exec probes, then try again",
                )
            name = rootfs.root_directory(container.name)
            grown = self._archiving(name)
            self._notes += rootfs.capture_root(container, view, tree / name, grown).notes
            for part in container.volumes:
                name = rootfs.volume_directory(part.key)
                grown = self._archiving(name)
                self._notes += rootfs.capture_volume(
                    container, part, view, tree / name, grown
                ).notes

    def _archiving(self, folder: str) -> Grown | None:
        """A pod that stops has its files stored while they are read; another is not held for it."""
        self._storing.upload.forget(f"{folder}/")
        return self._storing.archiving(folder) if self._is_stop else None

    # ---- the store ---------------------------------------------------------------------

    def _commit(
        self,
        pod: JsonObject,
        containers: tuple[Container, ...],
        reports: tuple[DumpReport, ...],
    ) -> None:
        """For Stop: the tasks stand still until this returns, and end then."""
        self._store(pod, containers, reports)
        self._await_deletion(pod)

    def _store(
        self,
        pod: JsonObject,
        containers: tuple[Container, ...],
        reports: tuple[DumpReport, ...],
    ) -> None:
        self.is_captured = True
        for each, report in zip(containers, reports, strict=True):
            self._notes += not_as_asked(self.checkpoint.spec, each.name, report)
        for note in self._notes:
            _log.warning("%s: %s", self._subject, note)
        text = "state is captured" + "".join(f"; {note}" for note in self._notes)
        captured = self._condition(ConditionType.CAPTURED, True, Reason.COMPLETED, text)
        storing = self._condition(ConditionType.STORED, False, Reason.IN_PROGRESS, "being stored")
        self.report.post({}, [captured, storing])
        head = self._head(pod, containers, reports)
        stored = self._storing.commit(SourceTree(root=self.folder.tree, head=head))
        self._measure(stored)
        text = f"{stored.size_bytes} bytes in store {self.checkpoint.status.store_name}, verified"
        if self._is_stop:
            text += f"; {self._ahead_bytes} were there before the pod was stopped"
        fields: dict[str, object] = {
            "sizeBytes": stored.size_bytes,
            "storedBytes": stored.stored_bytes,
            "path": stored.ref.path,
            "manifestDigest": stored.digest,
            "completedAt": datetime.now(UTC),
            "podTemplate": record(pod),
            "containers": _told(containers, reports, stored),
            "progress": None,
            "pause": format_duration(max(each.frozen_s for each in reports)),
            "pauseSteps": _told_steps(reports[-1].pause_s),
            "steps": _told_steps(self._steps(reports)),
        }
        self._persist(
            fields,
            captured,
            self._condition(ConditionType.STORED, True, Reason.COMPLETED, text),
        )
        _log.info("%s: %s", self._subject, text)

    def _measure(self, stored: StoredManifest) -> None:
        metrics = self.context.metrics
        metrics.transferred.labels("to-store").inc(stored.size_bytes)
        metrics.ahead.inc(self._ahead_bytes)
        metrics.stored(stored)

    def _steps(self, reports: tuple[DumpReport, ...]) -> dict[str, float]:
        """The long ones, in their order; containers are taken together."""
        phases, began_s = reports[-1].phases_s, self._stopped_at_s
        found = {name: phases[name] for name in _LONG_PHASES if name in phases}
        found |= self._storing.seconds
        if self._is_stop:
            found["stopped until stored"] = time.monotonic() - began_s
        for name, took_s in found.items():
            self.context.metrics.stage.labels("Checkpoint", name).observe(took_s)
        return found

    def _head(
        self,
        pod: JsonObject,
        containers: tuple[Container, ...],
        reports: tuple[DumpReport, ...],
    ) -> Head:
        metadata = pod["metadata"]
        return Head(
            ref=reference(self.checkpoint),
            pod_name=str(metadata["name"]),
            pod_uid=str(metadata["uid"]),
            created=self._instant.isoformat(timespec="milliseconds"),
            node=node_facts(self.context.node_name, self.context.cpu_flags),
            containers=tuple(
                ContainerFacts(
                    name=each.name,
                    image=each.image,
                    image_id=each.image_id,
                    tasks=report.tasks,
                    memory_bytes=report.memory_bytes,
                    volumes=tuple(part.key for part in each.volumes),
                )
                for each, report in zip(containers, reports, strict=True)
            ),
            pod_template=record(pod),
        )

    def _await_deletion(self, pod: JsonObject) -> None:
        """Wait until the controller has deleted the pod: only then may its tasks end."""
        while self.deadline.left_s > 0:
            if self._is_deleted(pod):
                return
            time.sleep(self.context.poll_s)
        text = "the pod was not deleted in time, it runs on"
        stored = self._condition(ConditionType.STORED, False, Reason.TIMEOUT, text)
        self._persist({}, stored)
        if not self._is_deleted(pod):  # from now on nobody will delete it
            self.deadline.check("deletion of the pod by the controller")

    def _is_deleted(self, pod: JsonObject) -> bool:
        metadata = pod["metadata"]
        try:
            found = self.context.client.get(PODS, metadata["namespace"], metadata["name"])
        except NotFound:
            return True
        except Unreachable:
            return False
        now = found["metadata"]
        return bool(now["uid"] != metadata["uid"] or now.get("deletionTimestamp"))

    # ---- helpers -----------------------------------------------------------------------

    def _pod(self) -> JsonObject:
        namespace = self.checkpoint.metadata.namespace
        name = self.checkpoint.spec.pod_ref.name
        subject = f"pod {namespace}/{name}"
        try:
            pod = self.context.client.get(PODS, namespace, name)
        except NotFound as error:
            raise PodNotFound(
                "the pod is gone", subject=subject, remedy="name a pod that runs"
            ) from error
        metadata = pod["metadata"]
        if metadata["uid"] != self.checkpoint.status.pod_uid:
            raise PodNotFound(
                "the pod was replaced by another of its name",
                subject=subject,
                cause=f"its UID is {metadata['uid']}, not {self.checkpoint.status.pod_uid}",
                remedy="create a new Checkpoint",
            )
        by_hook = self.checkpoint.metadata.labels.get(REQUESTED_BY_LABEL) == REQUESTED_BY_HOOK
        if metadata.get("deletionTimestamp") and not by_hook:
            raise PodDeleting(
                "the pod is being deleted", subject=subject, remedy="name a pod that runs"
            )
        return pod

    def _check_pod_is_there(self, error: Vanished) -> None:
        """Say that the pod went, if that is why something vanished."""
        try:
            self._pod()
        except Unreachable:
            return
        except Error as reason:
            raise reason from error

    def _locate(self, pod: JsonObject) -> tuple[Container, ...]:
        """Find the containers; waits a little for exec probes to end."""
        until_s = time.monotonic() + min(self.context.exec_patience_s, self.deadline.left_s)
        while True:
            try:
                return locate(
                    pod,
                    self.checkpoint.spec.containers,
                    self.context.view,
                    tolerance=self._tolerance,
                )
            except StrangerInside:
                if time.monotonic() > until_s:
                    raise
            time.sleep(self.context.poll_s)

    def _persist(self, fields: dict[str, object], *conditions: Condition) -> None:
        """Write to the status, through short outages of the API server."""
        persist(self.report, fields, conditions, self.deadline, self.context.poll_s)

    def _condition(
        self, kind: ConditionType, status: bool, reason: Reason, message: str
    ) -> Condition:
        generation = self.checkpoint.metadata.generation
        return condition(kind, status, reason, message, generation=generation)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start_s = time.monotonic()
        yield
        took_s = time.monotonic() - start_s
        self.context.metrics.stage.labels("Checkpoint", name).observe(took_s)
        _log.info("%s: %s took %.3f s", self._subject, name, took_s)


def _told_steps(seconds: Mapping[str, float]) -> dict[str, str]:
    """As a status has durations by step."""
    return {name: format_duration(s) for name, s in seconds.items()}


def _told(
    containers: tuple[Container, ...], reports: tuple[DumpReport, ...], stored: StoredManifest
) -> tuple[CheckpointedContainer, ...]:
    """`status.containers`."""
    return tuple(
        CheckpointedContainer(
            name=each.name,
            image=each.image,
            image_id=each.image_id,
            image_digest=stored.manifest.digest_below(f"images/{each.name}"),
            tasks=report.tasks,
            memory_bytes=report.memory_bytes,
            memory_way=f"{report.memory_way.value}: {report.memory_reason}"[:1024],
            pause=format_duration(report.frozen_s),
        )
        for each, report in zip(containers, reports, strict=True)
    )

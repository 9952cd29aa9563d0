# SPDX-License-Identifier: Apache-2.0
"""One restore on this node: fetch, wait for the placeholders, bring files back, take over.

A failure leaves no pod that looks alive: placeholders are told to give up (exit code 124),
containers that were back already are killed, and the cause is in the Restore's conditions.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torpor.engine.errors import BadImage, Error, Refused, Vanished
from torpor.engine.options import Progress, RestoreReport, TakeoverOptions
from torpor.plugin.agent import podfacts, rootfs
from torpor.plugin.agent.checkpoint import reference
from torpor.plugin.agent.context import (
    Context,
    Deadline,
    ImageMismatch,
    PodDeleting,
    PodNotFound,
)
from torpor.plugin.agent.endtask import end_task
from torpor.plugin.agent.fetching import Fetching
from torpor.plugin.agent.locate import (
    PLACEHOLDER_MOUNT,
    Container,
    TolerateAll,
    address_map,
    container_id,
    locate,
    pod_ips,
)
from torpor.plugin.agent.nodefacts import check_node
from torpor.plugin.agent.podfacts import Facts
from torpor.plugin.agent.report import Reporter, persist
from torpor.plugin.agent.staging import JobFolder
from torpor.plugin.api import codec
from torpor.plugin.api.common import RESTORE_UID_ANNOTATION
from torpor.plugin.api.conditions import condition, is_true
from torpor.plugin.api.duration import format_duration, parse_duration_s
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType, Reason
from torpor.plugin.api.v1alpha1 import Checkpoint, Restore, RestoredContainer
from torpor.plugin.k8s.errors import NotFound, Unreachable
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS
from torpor.plugin.store.manifest import ContainerFacts, Manifest

_log = logging.getLogger(__name__)
PLACEHOLDER_COMM = "torpor-wait"
MARK_RESTORED = "restored"
MARK_GIVE_UP = "give-up"
_LONGEST_TAKEOVER_S = 120.0


@dataclass(slots=True, kw_only=True)
class RestoreJob:
    """The work on one Restore."""

    context: Context
    restore: Restore
    folder: JobFolder
    report: Reporter
    attempt: int = 1
    deadline: Deadline = field(init=False)
    _placeholders: list[Container] = field(default_factory=list, init=False)
    _back: list[Container] = field(default_factory=list, init=False)
    _steps: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self.deadline = Deadline(
            limit_s=parse_duration_s(self.restore.spec.timeout), subject=self._subject
        )

    @property
    def _subject(self) -> str:
        return f"restore {self.restore.metadata.namespace}/{self.restore.metadata.name}"

    def run(self) -> None:
        """Do all of it.

        Raises:
            Error: it failed; nothing of the pod runs.
        """
        in_progress = condition(
            ConditionType.RESTORED, False, Reason.IN_PROGRESS, "state is fetched",
            generation=self.restore.metadata.generation,
        )  # fmt: skip
        self.report.write({}, [in_progress])
        try:
            self._work()
        except Error as error:
            self.give_up(error)
            raise

    def _work(self) -> None:
        with self._fetching() as fetching:
            with self._stage("fetch"):
                manifest = fetching.early()
            facts = podfacts.read(self.folder.tree)
            check_node(manifest.head.node, facts.cpu_flags, self.context.cpu_flags)
            with self._stage("wait"):
                pod, containers = self._await_placeholders(manifest)
            self._compare_images(pod, manifest)
            waiting = list(self._placeholders)
            with self._stage("files"):
                self._bring_files(waiting, manifest)
            with self._stage("pages"):
                stored = fetching.whole()
        self.context.metrics.transferred.labels("from-store").inc(stored.size_bytes)
        reports = {}
        with self._stage("takeover"):
            for container in waiting:
                reports[container.name] = self._take_over(container, facts, pod)
        self._tell(manifest, containers, reports)

    # ---- what was stored ---------------------------------------------------------------

    def _fetching(self) -> Fetching:
        """Into the staging directory, every byte checked against the Checkpoint's digest."""
        checkpoint = self._checkpoint()
        status = checkpoint.status
        assert status.manifest_digest is not None
        return Fetching(
            store=self.context.store(status.store_name),
            ref=reference(checkpoint),
            digest=status.manifest_digest,
            into=self.folder.tree,
            deadline=self.deadline,
            progress=self.report.note,
        )

    def _checkpoint(self) -> Checkpoint:
        namespace = self.restore.metadata.namespace
        name = self.restore.spec.checkpoint_ref.name
        subject = f"checkpoint {namespace}/{name}"
        item = self.context.client.get(CHECKPOINTS, namespace, name)
        checkpoint = codec.decode(Checkpoint, item)
        if not is_true(checkpoint.status.conditions, ConditionType.READY):
            raise Refused(
                "the Checkpoint is not Ready", subject=subject, remedy="wait until it is Ready"
            )
        if not checkpoint.status.manifest_digest:
            raise BadImage(
                "the Checkpoint names no manifest",
                subject=subject,
                remedy="take the checkpoint anew",
            )
        return checkpoint

    # ---- the new pod -------------------------------------------------------------------

    def _await_placeholders(self, manifest: Manifest) -> tuple[JsonObject, tuple[Container, ...]]:
        """Wait until every container of the checkpoint runs as a placeholder, or is back."""
        names = [each.name for each in manifest.head.containers]
        self.report.note(Progress(phase="waiting", text="for the containers of the new pod"))
        while True:
            self.deadline.check("start of the new pod")
            pod = self._pod()
            try:
                for name in names:
                    container_id(pod, name)
                found = locate(pod, names, self.context.view, tolerance=TolerateAll())
                self._back = [each for each in found if self._is_back(each)]
                self._placeholders = [each for each in found if self._waits(each)]
            except Vanished:
                found = ()
            if found and len(self._back) + len(self._placeholders) == len(found):
                return pod, found
            time.sleep(self.context.poll_s)

    def _pod(self) -> JsonObject:
        namespace, name = self.restore.metadata.namespace, self.restore.status.pod_name or ""
        subject = f"pod {namespace}/{name}"
        try:
            pod = self.context.client.get(PODS, namespace, name)
        except NotFound as error:
            raise PodNotFound(
                "the new pod is gone", subject=subject, remedy="create a new Restore"
            ) from error
        metadata = pod["metadata"]
        annotations = metadata.get("annotations") or {}
        if (
            metadata["uid"] != self.restore.status.pod_uid
            or annotations.get(RESTORE_UID_ANNOTATION) != self.restore.metadata.uid
        ):
            raise PodNotFound(
                "the pod is not the one that was made for this Restore",
                subject=subject,
                remedy="create a new Restore with another spec.podName",
            )
        if metadata.get("deletionTimestamp"):
            raise PodDeleting(
                "the new pod is being deleted", subject=subject, remedy="create a new Restore"
            )
        return pod

    def _waits(self, container: Container) -> bool:
        """Whether the placeholder is what runs (the runtime's own init is there before it)."""
        try:
            return self.context.view.task(container.init_pid).name == PLACEHOLDER_COMM
        except Vanished:
            return False

    def _is_back(self, container: Container) -> bool:
        """Whether an earlier life of the agent took it over already.

        The engine's death in the middle kills the placeholder, so what runs and is neither a
        placeholder nor a runtime's init (``runc:[2:INIT]``) is whole, with or without the mark.
        """
        if rootfs.has_mark(container, self.context.view, MARK_RESTORED):
            return True
        name = self.context.view.task(container.init_pid).name
        if self.attempt == 1 or name == PLACEHOLDER_COMM or ":[" in name:
            return False
        rootfs.write_mark(container, self.context.view, MARK_RESTORED, "")
        return True

    def _compare_images(self, pod: JsonObject, manifest: Manifest) -> None:
        statuses = {
            str(each["name"]): each for each in pod["status"].get("containerStatuses") or ()
        }
        for old in manifest.head.containers:
            new = str(statuses.get(old.name, {}).get("imageID") or "")
            if not is_same_image(old.image_id, new):
                raise ImageMismatch(
                    "the new container runs another image",
                    subject=f"{self._subject}, container {old.name}",
                    cause=f"it is {new}, the checkpoint was taken of {old.image_id}",
                    remedy="let the node have the image under the name that the pod uses",
                )

    # ---- bringing it back --------------------------------------------------------------

    def _bring_files(self, containers: list[Container], manifest: Manifest) -> None:
        view, tree = self.context.view, self.folder.tree
        old = {each.name: each for each in manifest.head.containers}
        for container in containers:
            self.report.note(Progress(phase="files", text=f"of container {container.name}"))
            self.deadline.check("files")
            rootfs.apply_root(container, view, tree / rootfs.root_directory(container.name))
            for part in self._parts(old[container.name], containers):
                rootfs.apply_volume(
                    part[0], part[1], view, tree / rootfs.volume_directory(part[1].key)
                )

    def _parts(
        self, old: ContainerFacts, containers: list[Container]
    ) -> Iterator[tuple[Container, Any]]:
        """Where the volumes of a container are mounted now."""
        places = {part.key: (each, part) for each in containers for part in each.volumes}
        for key in old.volumes:
            if key not in places:
                raise Refused(
                    "the new pod has not the volumes of the old one",
                    subject=f"{self._subject}, container {old.name}, volume {key}",
                    remedy="leave the volumes of the pod as they were",
                )
            yield places[key]

    def _take_over(self, container: Container, facts: Facts, pod: JsonObject) -> RestoreReport:
        view = self.context.view
        links = rootfs.data_links(container, view)
        options = TakeoverOptions(
            pid=container.init_pid,
            images_dir=self.folder.tree / "images" / container.name,
            choose_pid=self.context.choose_pid,
            address_map=address_map(facts.pod_ips, pod_ips(pod)),
            path_map=rootfs.path_map(facts.data_links.get(container.name, {}), links),
            timeout_s=max(1.0, min(self.deadline.left_s, _LONGEST_TAKEOVER_S)),
            spare_images=True,
        )
        self.deadline.check("takeover")
        report = self.context.engine.takeover(options, progress=self.report.note)
        self._back.append(container)
        self._placeholders.remove(container)
        rootfs.write_mark(container, view, MARK_RESTORED, "")
        for warning in report.warnings:
            _log.warning("%s, container %s: %s", self._subject, container.name, warning)
        return report

    def _tell(
        self,
        manifest: Manifest,
        containers: tuple[Container, ...],
        reports: Mapping[str, RestoreReport],
    ) -> None:
        now = datetime.now(UTC)
        told = tuple(_told(each, reports.get(each.name)) for each in containers)
        text = f"{len(containers)} containers run on node {self.context.node_name}"
        restored = condition(
            ConditionType.RESTORED, True, Reason.COMPLETED, text,
            generation=self.restore.metadata.generation,
        )  # fmt: skip
        away_s = (now - _moment(manifest.head.created)).total_seconds()
        fields = {
            "containers": told,
            "restoredAt": now,
            "downtime": format_duration(max(0.0, away_s)),
            "progress": None,
            "steps": {name: format_duration(took_s) for name, took_s in self._steps.items()},
        }
        persist(self.report, fields, (restored,), self.deadline, self.context.poll_s)
        _log.info("%s: %s", self._subject, text)

    # ---- when it fails -----------------------------------------------------------------

    def give_up(self, error: Error) -> None:
        """See that nothing half restored runs."""
        if not self._placeholders and not self._back:
            self._find_placeholders()
        for container in self._placeholders:
            try:
                rootfs.write_mark(container, self.context.view, MARK_GIVE_UP, f"{error}\n")
            except Error as reason:
                _log.warning(
                    "%s, %s: not told to give up: %s", self._subject, container.name, reason
                )
        for container in self._back:
            _kill(container)

    def _find_placeholders(self) -> None:
        """When it failed before the pod was looked at: they may be about to start."""
        until_s = time.monotonic() + self.context.start_patience_s
        while not self._look_for_placeholders():
            if time.monotonic() > until_s:
                _log.warning("%s: its containers did not start, nobody to tell", self._subject)
                return
            time.sleep(self.context.poll_s)

    def _look_for_placeholders(self) -> bool:
        """Whether all that there will be are found."""
        try:
            pod = self._pod()
            if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                return True
            names = _held(pod)
            found = locate(pod, names, self.context.view, tolerance=TolerateAll())
        except Vanished:
            return False
        except (Refused, Unreachable, PodNotFound, PodDeleting) as error:
            _log.info("%s: no placeholder to be told: %s", self._subject, error)
            return True
        self._placeholders = [each for each in found if self._waits(each)]
        return len(self._placeholders) == len(names)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start_s = time.monotonic()
        yield
        took_s = time.monotonic() - start_s
        self._steps[name] = took_s
        self.context.metrics.stage.labels("Restore", name).observe(took_s)
        _log.info("%s: %s took %.3f s", self._subject, name, took_s)


def _held(pod: JsonObject) -> list[str]:
    """The containers that were made to start as placeholders."""
    return [
        str(each["name"])
        for each in pod["spec"]["containers"]
        if str((each.get("command") or ("",))[0]).startswith(f"{PLACEHOLDER_MOUNT}/")
    ]


def is_same_image(old: str, new: str) -> bool:
    """Whether two image ids may be the same image.

    An id is a digest of the manifest (``name@sha256:...``) where the image was pulled, and of
    the config (``sha256:...``) where it was imported: these two say nothing about each other.
    """
    old, new = (each.removeprefix("docker-pullable://") for each in (old, new))
    if ("@" in old) is not ("@" in new):
        return True
    return old.rpartition("@")[2] == new.rpartition("@")[2]


def _told(container: Container, report: RestoreReport | None) -> RestoredContainer:
    return RestoredContainer(
        name=container.name,
        pid=container.init_pid,
        tasks=report.tasks if report else None,
        restore_seconds=f"{report.total_s:.3f}" if report else None,
    )


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _kill(container: Container) -> None:
    """End a container that came back alone; its runtime sees exit code 137."""
    if not end_task(container.init_pid):
        _log.warning(
            "container %s, process %d: left running without the others",
            container.name, container.init_pid,
        )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""Which work an object asks of this node, and how a job begins, ends and is taken up again.

An object is its own journal: while its status says "in progress" there is work, after a
restart of the agent too. A job that is found begun is done from the start, a few times; the
engine left the workload unharmed when it died, and the folder of the job is emptied first.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from torpor.engine.errors import Bug, Error
from torpor.plugin.agent.checkpoint import CheckpointJob, reference
from torpor.plugin.agent.context import (
    AgentRestarted,
    Context,
    Deadline,
    PodDeleting,
    PodNotFound,
)
from torpor.plugin.agent.report import Reporter, persist
from torpor.plugin.agent.restore import RestoreJob
from torpor.plugin.agent.staging import JobFolder
from torpor.plugin.api import codec
from torpor.plugin.api.common import AGENT_MANAGER, DATA_FINALIZER
from torpor.plugin.api.conditions import Conditions, condition, find, is_true
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType, Reason, is_failure
from torpor.plugin.api.v1alpha1 import Checkpoint, DeletionPolicy, Restore
from torpor.plugin.k8s.apply import StatusWriter
from torpor.plugin.k8s.errors import NotFound, Unreachable
from torpor.plugin.k8s.kinds import CHECKPOINTS, RESTORES, Kind
from torpor.plugin.store.base import StoreFailed

_log = logging.getLogger(__name__)
MOST_ATTEMPTS = 3
BUSY_AGAIN_S = 1.0
DELETE_AGAIN_S = 30.0
_TELL_FAILURE_S = 60.0


class Work(Enum):
    """What an object asks for."""

    NOTHING = "nothing"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    DELETE_DATA = "delete data"


def work_of_checkpoint(checkpoint: Checkpoint, node_name: str) -> Work:
    """What to do about a Checkpoint that is shown to this node."""
    conditions, metadata = checkpoint.status.conditions, checkpoint.metadata
    if metadata.deletion_timestamp is not None:
        is_ours = (
            DATA_FINALIZER in metadata.finalizers
            and checkpoint.spec.deletion_policy is DeletionPolicy.DELETE
            and checkpoint.status.store_name is not None
            and not is_true(conditions, ConditionType.DATA_DELETED)
        )
        return Work.DELETE_DATA if is_ours else Work.NOTHING
    if checkpoint.status.node_name != node_name or _is_over(conditions):
        return Work.NOTHING
    if not is_true(conditions, ConditionType.ASSIGNED):
        return Work.NOTHING
    if is_true(conditions, ConditionType.STORED) or _has_failed(
        conditions, ConditionType.CAPTURED, ConditionType.STORED
    ):
        return Work.NOTHING
    return Work.CHECKPOINT


def work_of_restore(restore: Restore, node_name: str) -> Work:
    """What to do about a Restore that is shown to this node."""
    conditions = restore.status.conditions
    if restore.metadata.deletion_timestamp is not None or restore.status.node_name != node_name:
        return Work.NOTHING
    if _is_over(conditions) or not is_true(conditions, ConditionType.ASSIGNED):
        return Work.NOTHING
    if is_true(conditions, ConditionType.RESTORED) or _has_failed(
        conditions, ConditionType.RESTORED
    ):
        return Work.NOTHING
    return Work.RESTORE


@dataclass(slots=True, kw_only=True)
class Jobs:
    """Does the work of objects, one job a pod at a time."""

    context: Context
    _busy_pods: set[str] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def checkpoint(self, item: JsonObject) -> float | None:
        """Do what a Checkpoint asks for; gives seconds after which to look again, if at all."""
        checkpoint = codec.decode(Checkpoint, item)
        work = work_of_checkpoint(checkpoint, self.context.node_name)
        if work is Work.DELETE_DATA:
            return self._delete_data(item, checkpoint)
        if work is Work.NOTHING:
            return None
        with self._claimed(checkpoint.status.pod_uid) as is_free:
            if not is_free:
                return BUSY_AGAIN_S
            self._run_checkpoint(item, checkpoint)
        return None

    def restore(self, item: JsonObject) -> float | None:
        """Do what a Restore asks for; gives seconds after which to look again, if at all."""
        restore = codec.decode(Restore, item)
        if work_of_restore(restore, self.context.node_name) is Work.NOTHING:
            return None
        with self._claimed(restore.status.pod_uid) as is_free:
            if not is_free:
                return BUSY_AGAIN_S
            self._run_restore(item, restore)
        return None

    def are_open(self, item: JsonObject) -> bool:
        """Whether an object has work for this node that is yet to be done."""
        if item["kind"] == Checkpoint.KIND:
            checkpoint = codec.decode(Checkpoint, item)
            return work_of_checkpoint(checkpoint, self.context.node_name) is Work.CHECKPOINT
        restore = codec.decode(Restore, item)
        return work_of_restore(restore, self.context.node_name) is Work.RESTORE

    def _run_checkpoint(self, item: JsonObject, checkpoint: Checkpoint) -> None:
        folder = JobFolder(self.context.staging, checkpoint.metadata.uid)
        attempt = folder.begin()
        with self._reporter(CHECKPOINTS, item) as report:
            job = CheckpointJob(
                context=self.context, checkpoint=checkpoint, folder=folder, report=report
            )

            def work() -> None:
                _check_attempt(attempt)
                try:
                    job.run()
                except (PodNotFound, PodDeleting) as error:
                    if attempt == 1:
                        raise
                    raise _restarted(str(error)) from error

            self._finish(
                Checkpoint.KIND,
                folder,
                report,
                work,
                lambda error: _part(error, is_captured=job.is_captured),
            )

    def _run_restore(self, item: JsonObject, restore: Restore) -> None:
        folder = JobFolder(self.context.staging, restore.metadata.uid)
        attempt = folder.begin()
        with self._reporter(RESTORES, item) as report:
            job = RestoreJob(
                context=self.context,
                restore=restore,
                folder=folder,
                report=report,
                attempt=attempt,
            )

            def work() -> None:
                try:
                    _check_attempt(attempt)
                except AgentRestarted as error:
                    job.give_up(error)
                    raise
                job.run()

            self._finish(Restore.KIND, folder, report, work, lambda _: ConditionType.RESTORED)

    def _finish(
        self,
        kind: str,
        folder: JobFolder,
        report: Reporter,
        work: Callable[[], None],
        condition_type: Callable[[Error], ConditionType],
    ) -> None:
        """Run a job to its end, and tell how it ended."""
        metrics = self.context.metrics
        metadata = report.item["metadata"]
        prefix = f"[{metadata.get('namespace')}/{metadata['name']}]"
        _log.info("%s %s began", prefix, kind)
        with metrics.running.labels(kind).track_inprogress():
            error = _outcome(work)
        if error is not None and not folder.path.exists():
            _log.error("%s %s lost its folder: the agent's volume goes: %s", prefix, kind, error)
            raise error  # of this agent, not of the object: the next one takes it up, or we again
        folder.remove()
        if isinstance(error, NotFound):
            _log.info("%s %s was deleted meanwhile", prefix, kind)
            return
        if isinstance(error, Unreachable):
            raise error
        reason = error.reason if error else str(Reason.COMPLETED)
        metrics.jobs.labels(kind, "failure" if error else "success", reason).inc()
        if error is None:
            _log.info("%s %s ended", prefix, kind)
            return
        _log.error("%s %s failed: %s", prefix, kind, error)
        generation = metadata.get("generation")
        failed = condition(condition_type(error), False, reason, str(error), generation=generation)
        deadline = Deadline(limit_s=_TELL_FAILURE_S, subject=prefix)
        persist(report, {"progress": None}, (failed,), deadline, self.context.poll_s)

    def _delete_data(self, item: JsonObject, checkpoint: Checkpoint) -> float | None:
        """Remove the data of a Checkpoint that is to go."""
        generation = checkpoint.metadata.generation
        try:
            store = self.context.store(checkpoint.status.store_name)
            freed = store.delete(reference(checkpoint))
        except Error as error:
            told = condition(
                ConditionType.DATA_DELETED, False, Reason.STORE_UNREACHABLE, str(error),
                generation=generation,
            )  # fmt: skip
            again: float | None = DELETE_AGAIN_S
        else:
            told = condition(
                ConditionType.DATA_DELETED, True, Reason.COMPLETED, f"{freed} bytes freed",
                generation=generation,
            )  # fmt: skip
            again = None
        _log.info("%s: %s", reference(checkpoint), told.message)
        try:
            StatusWriter(self.context.client, CHECKPOINTS, AGENT_MANAGER).write(item, {}, [told])
        except NotFound:
            return None
        return again

    def _reporter(self, kind: Kind, item: JsonObject) -> Reporter:
        return Reporter(StatusWriter(self.context.client, kind, AGENT_MANAGER), item)

    @contextmanager
    def _claimed(self, pod_uid: str | None) -> Iterator[bool]:
        """Hold a pod for the time of a job; False if another job has it."""
        uid = pod_uid or ""
        with self._lock:
            is_free = uid not in self._busy_pods
            if is_free:
                self._busy_pods.add(uid)
        try:
            yield is_free
        finally:
            if is_free:
                with self._lock:
                    self._busy_pods.discard(uid)


def _outcome(work: Callable[[], None]) -> Error | None:
    """Run a job; what it raised, a defect of ours included."""
    try:
        work()
    except Error as error:
        return error
    except Exception as error:  # noqa: BLE001 - one job must not end the agent
        _log.exception("a job ended in a defect of torpor")
        return Bug(
            "a defect of torpor",
            cause=f"{type(error).__name__}: {error}",
            remedy="report it with the log of the agent",
        )
    return None


def _part(error: Error, *, is_captured: bool) -> ConditionType:
    """Which part of a checkpoint failed; a store may fail before all is captured."""
    at_store = is_captured or isinstance(error, StoreFailed)
    return ConditionType.STORED if at_store else ConditionType.CAPTURED


def _check_attempt(attempt: int) -> None:
    if attempt > MOST_ATTEMPTS:
        raise _restarted(f"this is attempt {attempt}")


def _restarted(cause: str) -> AgentRestarted:
    return AgentRestarted(
        "the agent died during the work",
        cause=cause,
        remedy="look at the log of the agent before its restart, then create a new object",
    )


def _is_over(conditions: Conditions) -> bool:
    return is_true(conditions, ConditionType.READY) or is_true(conditions, ConditionType.FAILED)


def _has_failed(conditions: Conditions, *kinds: ConditionType) -> bool:
    for kind in kinds:
        found = find(conditions, kind)
        if found is not None and found.status == "False" and is_failure(found.reason):
            return True
    return False


def sweep_stores(context: Context, stop: threading.Event, every_s: float) -> None:
    """Remove leftovers from the stores now and then, until ``stop``."""
    while not stop.wait(every_s):
        for name, store in context.stores.items():
            start_s = time.monotonic()
            try:
                freed = store.sweep()
            except Error as error:
                context.metrics.errors.labels("sweep").inc()
                _log.warning("store %s: not swept: %s", name, error)
            else:
                took_s = time.monotonic() - start_s
                _log.info("store %s: %d bytes of leftovers removed in %.1f s", name, freed, took_s)

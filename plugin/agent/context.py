# SPDX-License-Identifier: Apache-2.0
"""What every job of the agent works with: passed in, never global."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Generic, Protocol, TypeVar

from torpor.engine.errors import Error, Timeout
from torpor.engine.options import (
    DumpOptions,
    DumpReport,
    ProgressFn,
    ReadFilter,
    RestoreReport,
    TakeoverOptions,
)
from torpor.plugin.agent.metrics import Metrics
from torpor.plugin.agent.procview import NodeView
from torpor.plugin.k8s.client import Client
from torpor.plugin.store.base import Cancel, Store

_Result = TypeVar("_Result")


class EngineFace(Protocol):
    """What the agent needs of `torpor.engine.api`."""

    def dump(
        self,
        trees: Sequence[DumpOptions],
        *,
        while_frozen: Callable[[], None] | None = None,
        commit: Callable[[tuple[DumpReport, ...]], None] | None = None,
        progress: ProgressFn = ...,
    ) -> tuple[DumpReport, ...]:
        """See `torpor.engine.api.dump`."""
        ...

    def takeover(self, options: TakeoverOptions, *, progress: ProgressFn = ...) -> RestoreReport:
        """See `torpor.engine.api.takeover`."""
        ...


class StoreNotFound(Error):
    """This node's agent does not mount the store."""


class ImageMismatch(Error):
    """The new container runs another image than the old one did."""


class AgentRestarted(Error):
    """The agent died during the work, too often or too late to begin again."""


class PodNotFound(Error):
    """The pod is gone, or is not the one that was meant."""


class PodDeleting(Error):
    """The pod is being deleted, or was while the work went on."""


def nobody_waits(container_id: str) -> frozenset[int]:
    """Processes of a container that wait for the hook's answer, without a hook."""
    del container_id
    return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The agent's surroundings."""

    node_name: str
    client: Client
    engine: EngineFace
    view: NodeView
    staging: Path
    stores: Mapping[str, Store]
    choose_pid: Callable[[int, int], None]
    read_filter: ReadFilter
    metrics: Metrics
    cpu_flags: tuple[str, ...] = ()
    waiting_in: Callable[[str], frozenset[int]] = nobody_waits
    poll_s: float = 0.2
    exec_patience_s: float = 10.0
    start_patience_s: float = 30.0

    def store(self, name: str | None) -> Store:
        """A store by name.

        Raises:
            StoreNotFound: this agent does not mount it.
        """
        found = self.stores.get(name or "")
        if found is None:
            raise StoreNotFound(
                "the store is not mounted on this node",
                subject=f"CheckpointStore {name}, node {self.node_name}",
                cause=f"mounted are {', '.join(sorted(self.stores)) or 'none'}",
                remedy="install the chart with this store for the agents of all nodes",
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A moment by which a job has to be over."""

    limit_s: float
    subject: str
    started_monotonic_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Time that is left; negative when it passed."""
        return self.started_monotonic_s + self.limit_s - time.monotonic()

    def check(self, doing: str) -> None:
        """Raise when it passed.

        Raises:
            Timeout: with what was being done.
        """
        if self.left_s <= 0:
            raise self.timeout(doing)

    def run(self, doing: str, work: Callable[[], _Result], cancel: Cancel) -> _Result:
        """Do work that may hang (a dead NFS server) in a thread of its own.

        Raises:
            Timeout: the deadline passed; ``cancel`` is set, and the thread ends when it can.
        """
        return self.begin(doing, work, cancel).result()

    def begin(self, doing: str, work: Callable[[], _Result], cancel: Cancel) -> "BesideIt[_Result]":
        """As `run`, going on meanwhile."""
        return BesideIt(self, doing, work, cancel)

    def timeout(self, doing: str) -> Timeout:
        """What to raise when it passed."""
        return Timeout(
            f"{doing} was not finished within {self.limit_s:g} s",
            subject=self.subject,
            remedy="set a longer spec.timeout; look at the store's speed",
        )


class BesideIt(Generic[_Result]):
    """Work in a thread of its own, under a deadline."""

    def __init__(
        self, deadline: Deadline, doing: str, work: Callable[[], _Result], cancel: Cancel
    ) -> None:
        self._deadline, self._doing, self._cancel = deadline, doing, cancel
        self._results: list[_Result] = []
        self._errors: list[BaseException] = []
        self._thread = Thread(target=self._do, args=(work,), name=doing, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether there is a result, or an error."""
        return not self._thread.is_alive()

    def result(self) -> _Result:
        """What came of it, as `Deadline.run`."""
        self._thread.join(max(0.0, self._deadline.left_s))
        if self._thread.is_alive():
            self._cancel.set()
            raise self._deadline.timeout(self._doing)
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def call_off(self, patience_s: float) -> None:
        """Have it end, and wait a little for that."""
        self._cancel.set()
        self._thread.join(patience_s)

    def _do(self, work: Callable[[], _Result]) -> None:
        try:
            self._results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            self._errors.append(error)

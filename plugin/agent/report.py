# SPDX-License-Identifier: Apache-2.0
"""The status of the object that a job works on, written while the job goes on.

A pod stands still during parts of a job, so those parts only note what is to be said
(`note`, `post`); a thread writes it. What must be known before the job goes on is written at
once (`write`).
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

from torpor.engine.options import Progress as EngineProgress
from torpor.plugin.agent.context import Deadline
from torpor.plugin.api.common import Progress
from torpor.plugin.api.conditions import Condition
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.apply import StatusWriter
from torpor.plugin.k8s.errors import ApiError, Unreachable

_log = logging.getLogger(__name__)


class Reporter:
    """Status of one object; to be used in a ``with``, at whose end everything is written."""

    def __init__(self, writer: StatusWriter, item: JsonObject, *, every_s: float = 1.0) -> None:
        self._writer = writer
        self._item = item
        self._every_s = every_s
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._fields: dict[str, Any] = {}
        self._conditions: dict[str, Condition] = {}
        self._wake = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._wake.set()
        self._thread.join()

    @property
    def item(self) -> JsonObject:
        """The object as last seen."""
        with self._write_lock:
            return self._item

    def note(self, step: EngineProgress) -> None:
        """Take notice of progress; costs next to nothing."""
        percent = min(100, 100 * step.done // step.total) if step.total else None
        self.post({"progress": Progress(phase=step.phase, text=step.text, percent=percent)})

    def post(self, fields: Mapping[str, Any], conditions: Iterable[Condition] = ()) -> None:
        """Have it written soon."""
        with self._lock:
            self._fields.update(fields)
            self._conditions.update({each.type: each for each in conditions})
        self._wake.set()

    def write(self, fields: Mapping[str, Any], conditions: Iterable[Condition] = ()) -> None:
        """Write it now, with all that was posted before.

        Raises:
            ApiError: it was not written.
        """
        self.post(fields, conditions)
        self._flush()

    def _run(self) -> None:
        while not self._is_over.is_set():
            self._wake.wait()
            self._wake.clear()
            self._try_flush()
            self._is_over.wait(self._every_s)
        self._try_flush()

    def _try_flush(self) -> None:
        try:
            self._flush()
        except ApiError as error:
            _log.warning("%s: status not written: %s", self._item["metadata"]["name"], error)

    def _flush(self) -> None:
        with self._write_lock:
            with self._lock:
                fields, self._fields = self._fields, {}
                conditions, self._conditions = self._conditions, {}
            if not fields and not conditions:
                return
            try:
                self._item = self._writer.write(self._item, fields, conditions.values())
            except ApiError:
                with self._lock:  # what came meanwhile is newer
                    self._fields = fields | self._fields
                    self._conditions = conditions | self._conditions
                raise


def persist(
    report: Reporter,
    fields: dict[str, object],
    conditions: tuple[Condition, ...],
    deadline: Deadline,
    poll_s: float,
) -> None:
    """Write a status until the API server takes it or time is up."""
    while True:
        try:
            report.write(fields, conditions)
        except Unreachable:
            if deadline.left_s <= 0:
                raise
            time.sleep(poll_s)
        else:
            return

# SPDX-License-Identifier: Apache-2.0
"""Worker threads that take keys from a queue and reconcile them, and never die of one object."""

import logging
import threading
from collections.abc import Callable

from torpor.engine.errors import Error
from torpor.plugin.k8s.queue import Key, WorkQueue

log = logging.getLogger(__name__)


class Loop:
    """The workers of one kind."""

    def __init__(
        self,
        name: str,
        queue: WorkQueue,
        reconcile: Callable[[Key], float | None],
        *,
        workers: int,
        on_error: Callable[[], None],
    ) -> None:
        self._name = name
        self._queue = queue
        self._reconcile = reconcile
        self._on_error = on_error
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is at work and end."""
        self._queue.close()
        for thread in self._threads:
            thread.join(timeout=5)

    @property
    def alive(self) -> bool:
        """True while all workers live."""
        return all(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (key := self._queue.take()) is not None:
            failed = True
            after_s: float | None = None
            try:
                after_s = self._reconcile(key)
                failed = False
            except Error as error:
                log.warning("%s %s: tried again later: %s", self._name, key, error)
            except Exception:  # one of the three loops that must live
                log.exception("%s %s: bug, tried again later", self._name, key)
            if failed:
                self._on_error()
            self._queue.done(key, failed=failed)
            if after_s is not None:
                self._queue.add(key, delay_s=after_s)

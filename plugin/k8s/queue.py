# SPDX-License-Identifier: Apache-2.0
"""Work queue of keys: each at most once in the queue, and with one worker at a time."""

import random
import threading
import time
from typing import NamedTuple

BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 60.0


class Key(NamedTuple):
    """An object: its namespace, empty for cluster-wide kinds, and its name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """As logs show it."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class WorkQueue:
    """Keys to work on, now or later; failures come back with growing delay."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._due_monotonic_s: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._closed = False

    def add(self, key: Key, *, delay_s: float = 0.0) -> None:
        """Ask for work on ``key``; an earlier time wins over a later one."""
        due = time.monotonic() + delay_s
        with self._wake:
            if self._closed or self._due_monotonic_s.get(key, due + 1) <= due:
                return
            self._due_monotonic_s[key] = due
            self._wake.notify()

    def take(self) -> Key | None:
        """Wait for a key that is due and not being worked on; None when closed."""
        with self._wake:
            while not self._closed:
                free = [(due, k) for k, due in self._due_monotonic_s.items() if k not in self._busy]
                due, key = min(free, default=(None, None))
                if due is None or key is None:
                    self._wake.wait()
                elif (wait_s := due - time.monotonic()) > 0:
                    self._wake.wait(wait_s)
                else:
                    del self._due_monotonic_s[key]
                    self._busy.add(key)
                    return key
        return None

    def done(self, key: Key, *, failed: bool = False) -> None:
        """End work on ``key``; a failed one is added again with a delay."""
        with self._wake:
            self._busy.discard(key)
            count = self._failures.pop(key, 0) + 1 if failed else 0
            if failed:
                self._failures[key] = count
            else:
                self._failures.pop(key, None)
            self._wake.notify()
        if failed:
            self.add(key, delay_s=backoff_s(count))

    def close(self) -> None:
        """Let all takers go."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def __len__(self) -> int:
        """Keys that wait."""
        with self._wake:
            return len(self._due_monotonic_s)


def backoff_s(failures: int) -> float:
    """Delay after so many failures in a row, with jitter so that many do not come at once."""
    most = min(BACKOFF_FIRST_S * 2.0 ** (failures - 1), BACKOFF_MOST_S)
    return most * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)

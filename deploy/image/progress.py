# SPDX-License-Identifier: Apache-2.0
"""Progress lines: each step with the seconds since the start, and a sign of life in long ones."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

HEARTBEAT_S = 60.0


class Progress:
    """Writes one line a step to standard error.

    Args:
        quiet: write nothing (for fixtures).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._start = time.monotonic()
        self._quiet = quiet
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Writes one line."""
        if self._quiet:
            return
        with self._lock:
            elapsed = time.monotonic() - self._start
            print(f"[{elapsed:6.1f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def long(self, doing: str, done: str) -> Iterator[None]:
        """Announces a long step, says once a minute that it goes on, and how long it took."""
        self.say(f"{doing} ...")
        start = time.monotonic()
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_S):
                self.say(f"  still {doing} ({time.monotonic() - start:.0f} s)")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self.say(f"{done} in {time.monotonic() - start:.0f} s")

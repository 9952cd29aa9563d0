# SPDX-License-Identifier: Apache-2.0
"""A kind of objects kept in memory by list and watch, whatever happens to the connection.

The first list and every later change call ``on_change(key)``; who is called reads the object
with :meth:`Watcher.get`. A broken stream is taken up where it ended; a version that is too old
(410 Gone) means a new list, whose difference to memory is reported, deletions included. Every
object is reported anew once in ``resync_s``, so that no missed thought lasts.
"""

import logging
import threading
import time
from collections.abc import Callable

from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.client import EVERYWHERE, Client, Selector
from torpor.plugin.k8s.errors import ApiError, Gone
from torpor.plugin.k8s.kinds import Kind
from torpor.plugin.k8s.queue import Key, backoff_s

log = logging.getLogger(__name__)

WATCH_TIMEOUT_S = 300
RESYNC_S = 600.0
LIVED_S = 5.0
"""A stream that broke after this long worked: the next one is tried at once."""


def key_of(item: JsonObject) -> Key:
    """Namespace and name of an object."""
    metadata = item["metadata"]
    return Key(str(metadata.get("namespace") or ""), str(metadata["name"]))


class Watcher:
    """One thread that follows one kind."""

    def __init__(
        self,
        client: Client,
        kind: Kind,
        on_change: Callable[[Key], None],
        *,
        selector: Selector = EVERYWHERE,
        resync_s: float = RESYNC_S,
        watch_timeout_s: int = WATCH_TIMEOUT_S,
    ) -> None:
        self.kind = kind
        self._client = client
        self._on_change = on_change
        self._selector = selector
        self._resync_s = resync_s
        self._watch_timeout_s = watch_timeout_s
        self._lock = threading.Lock()
        self._objects: dict[Key, JsonObject] = {}
        self._version = ""
        self._synced = threading.Event()
        self._stopped = threading.Event()
        self._resynced_monotonic_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"watch-{kind.plural}", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End; the thread leaves at the end of its stream at the latest."""
        self._stopped.set()

    def wait_synced(self, timeout_s: float | None = None) -> bool:
        """Wait for the first complete list."""
        return self._synced.wait(timeout_s)

    @property
    def synced(self) -> bool:
        """True once a complete list was seen."""
        return self._synced.is_set()

    def get(self, key: Key) -> JsonObject | None:
        """The object as last seen; not to be changed by the caller."""
        with self._lock:
            return self._objects.get(key)

    def all(self) -> tuple[JsonObject, ...]:
        """All objects as last seen."""
        with self._lock:
            return tuple(self._objects.values())

    def remember(self, item: JsonObject) -> None:
        """Take over an answer to an own write, so that the next read is not older than it."""
        key = key_of(item)
        with self._lock:
            known = self._objects.get(key)
            if known is not None and not _is_newer(known, item):
                self._objects[key] = item

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                if not self._version:
                    self._relist()
                self._follow()
                failures = 0
            except Gone:
                log.info("%s: version %s is too old, listing anew", self.kind.plural, self._version)
                self._version = ""
            except ApiError as error:
                lived = time.monotonic() - began > LIVED_S
                failures = 1 if lived else failures + 1
                if failures > 1:
                    log.warning("%s: watch interrupted: %s", self.kind.plural, error)
                self._stopped.wait(backoff_s(failures) if failures > 1 else 0.1)
            self._resync_if_due()

    def _relist(self) -> None:
        listing = self._client.list(self.kind, self._selector)
        fresh = {key_of(item): item for item in listing.items}
        with self._lock:
            before = self._objects
            self._objects = fresh
        self._version = listing.resource_version
        self._synced.set()
        gone = before.keys() - fresh.keys()
        turned = [k for k, item in fresh.items() if not _is_same(before.get(k), item)]
        for key in [*turned, *gone]:
            self._on_change(key)

    def _follow(self) -> None:
        timeout_s = max(1, min(self._watch_timeout_s, int(self._resync_s)))
        events = self._client.watch(self.kind, self._selector, self._version, timeout_s)
        for event in events:
            if self._stopped.is_set():
                return
            self._take(str(event["type"]), event["object"])

    def _take(self, event_type: str, item: JsonObject) -> None:
        version = str(item["metadata"]["resourceVersion"])
        if event_type != "BOOKMARK":
            key = key_of(item)
            with self._lock:
                if event_type == "DELETED":
                    self._objects.pop(key, None)
                else:
                    self._objects[key] = item
            self._on_change(key)
        self._version = version

    def _resync_if_due(self) -> None:
        now = time.monotonic()
        if now - self._resynced_monotonic_s < self._resync_s:
            return
        self._resynced_monotonic_s = now
        with self._lock:
            keys = list(self._objects)
        for key in keys:
            self._on_change(key)


def _is_same(before: JsonObject | None, item: JsonObject) -> bool:
    if before is None:
        return False
    same: bool = before["metadata"].get("resourceVersion") == item["metadata"].get(
        "resourceVersion"
    )
    return same


def _is_newer(known: JsonObject, item: JsonObject) -> bool:
    """True when ``known`` is the younger version of the same object, or another object.

    Versions of one resource are increasing numbers on every API server there is.
    """
    if known["metadata"].get("uid") != item["metadata"].get("uid"):
        return True
    try:
        return int(known["metadata"]["resourceVersion"]) > int(item["metadata"]["resourceVersion"])
    except ValueError:
        return False

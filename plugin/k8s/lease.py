# SPDX-License-Identifier: Apache-2.0
"""One leader among several processes, by a Lease of coordination.k8s.io.

A holder renews the lease every ``renew_s``. One that could not renew for ``deadline_s`` stops
leading, which is before others may take over after ``duration_s`` by *their* clocks: they measure
how long the lease has not changed and never compare times of two machines.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.client import Client
from torpor.plugin.k8s.errors import AlreadyExists, ApiError, Conflict, NotFound
from torpor.plugin.k8s.kinds import LEASES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How long a lease lasts, when a holder gives up, and how often it renews."""

    duration_s: float = 15.0
    deadline_s: float = 10.0
    renew_s: float = 2.0


class LeaderElection:
    """Takes part in the election; calls back when it won and when it lost."""

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._times = times or LeaseTimes()
        self._stopped = threading.Event()
        self._leading = threading.Event()
        self._reached = threading.Event()
        self._last_error = ""
        self._seen_version = ""
        self._seen_monotonic_s = 0.0
        self._renewed_monotonic_s = 0.0

    @property
    def leading(self) -> bool:
        """True while we hold the lease."""
        return self._leading.is_set()

    @property
    def takes_part(self) -> bool:
        """True once the API server answered about the lease."""
        return self._reached.is_set()

    def stop(self) -> None:
        """Leave the election; a held lease is given back."""
        self._stopped.set()

    def run(self, on_started: Callable[[], None], on_stopped: Callable[[], None]) -> None:
        """Wait for leadership, call ``on_started``, renew; call ``on_stopped`` when it ends."""
        while not self._stopped.is_set() and not self._try():
            self._stopped.wait(self._times.renew_s)
        if self._stopped.is_set():
            return
        log.info("lease %s: %s leads", self._name, self._identity)
        self._leading.set()
        on_started()
        while not self._stopped.wait(self._times.renew_s):
            self._try()
            if time.monotonic() - self._renewed_monotonic_s > self._times.deadline_s:
                log.warning("lease %s: %s lost the lead", self._name, self._identity)
                break
        self._leading.clear()
        on_stopped()
        if self._stopped.is_set():
            self._release()

    def _try(self) -> bool:
        """Take or renew the lease; True when we hold it now."""
        began = time.monotonic()
        try:
            try:
                lease = self._client.get(LEASES, self._namespace, self._name)
            except NotFound:
                spec = self._spec(transitions=0)
                body = {"metadata": {"name": self._name, "namespace": self._namespace}}
                self._client.create(LEASES, self._namespace, {**body, "spec": spec})
            else:
                self._reached.set()
                if not self._may_take(lease):
                    return False
                self._client.replace(LEASES, self._namespace, self._name, self._renewed(lease))
        except (Conflict, AlreadyExists):
            self._reached.set()
            return False
        except ApiError as error:
            if str(error) != self._last_error:
                log.warning("lease %s: %s", self._name, error)
            self._last_error = str(error)
            return False
        self._last_error = ""
        self._reached.set()
        self._renewed_monotonic_s = began
        return True

    def _may_take(self, lease: JsonObject) -> bool:
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") in (self._identity, "", None):
            return True
        version = str(lease["metadata"]["resourceVersion"])
        if version != self._seen_version:
            self._seen_version = version
            self._seen_monotonic_s = time.monotonic()
            return False
        duration_s = float(spec.get("leaseDurationSeconds") or self._times.duration_s)
        return time.monotonic() - self._seen_monotonic_s > duration_s

    def _renewed(self, lease: JsonObject) -> JsonObject:
        spec = lease.get("spec") or {}
        mine = spec.get("holderIdentity") == self._identity
        transitions = int(spec.get("leaseTransitions") or 0) + (0 if mine else 1)
        fresh = self._spec(transitions=transitions)
        if mine and "acquireTime" in spec:
            fresh["acquireTime"] = spec["acquireTime"]
        return {**lease, "spec": fresh}

    def _spec(self, *, transitions: int) -> JsonObject:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._times.duration_s)),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _release(self) -> None:
        try:
            lease = self._client.get(LEASES, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                lease["spec"]["leaseDurationSeconds"] = 1
                self._client.replace(LEASES, self._namespace, self._name, lease)
        except ApiError as error:
            log.info("lease %s could not be given back: %s", self._name, error)

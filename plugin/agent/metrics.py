# SPDX-License-Identifier: Apache-2.0
"""What the agent measures. No pod names in labels: they would never end."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from torpor.engine.options import DumpReport, MemoryWay
from torpor.plugin.store.base import StoredManifest

_PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_RATIOS = (1, 1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 100)
_STAGES_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The agent's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter(
            "torpor_agent_jobs",
            "Jobs that came to an end on this node.",
            ["kind", "result", "reason"],
            registry=self.registry,
        )
        self.running = Gauge(
            "torpor_agent_jobs_running",
            "Jobs that are being worked on.",
            ["kind"],
            registry=self.registry,
        )
        self.freeze = Histogram(
            "torpor_agent_freeze_seconds",
            "How long the tasks of a pod stood still for a checkpoint, by the way of its memory.",
            ["way"],
            buckets=_PAUSES_S,
            registry=self.registry,
        )
        for way in MemoryWay:  # a rate needs a series that was there before the first pause
            if way is not MemoryWay.AUTO:
                self.freeze.labels(way.value)
        self.stage = Histogram(
            "torpor_agent_stage_seconds",
            "How long a part of a job took.",
            ["kind", "stage"],
            buckets=_STAGES_S,
            registry=self.registry,
        )
        self.transferred = Counter(
            "torpor_agent_transfer_bytes",
            "Plain bytes written to and read from stores.",
            ["direction"],
            registry=self.registry,
        )
        self.ahead = Counter(
            "torpor_agent_ahead_bytes",
            "Plain bytes that were in the store before the tasks of a pod were stopped.",
            registry=self.registry,
        )
        self.packed = Counter(
            "torpor_agent_stored_bytes",
            "Bytes of states in stores after compression, those that were there before included.",
            registry=self.registry,
        )
        self.ratio = Histogram(
            "torpor_agent_compression_ratio",
            "Plain bytes of a state by bytes in its store.",
            buckets=_RATIOS,
            registry=self.registry,
        )
        self.errors = Counter(
            "torpor_agent_errors",
            "Errors outside of any job, tried again.",
            ["kind"],
            registry=self.registry,
        )

    def dumped(self, reports: Sequence[DumpReport]) -> None:
        """Count a pod that was captured; of its containers, the one that stood still longest."""
        longest = max(reports, key=lambda each: each.frozen_s)
        self.freeze.labels(longest.memory_way.value).observe(longest.frozen_s)

    def stored(self, stored: StoredManifest) -> None:
        """Count a state that is in its store."""
        self.packed.inc(stored.stored_bytes)
        if stored.stored_bytes:
            self.ratio.observe(stored.size_bytes / stored.stored_bytes)

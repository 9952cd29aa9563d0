# SPDX-License-Identifier: Apache-2.0
"""What the controller counts. No pod names in labels: they would never end."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from torpor.plugin.api.duration import parse_duration_s
from torpor.plugin.api.v1alpha1 import Checkpoint

PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
DURATIONS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
SIZES_BYTES = tuple(2.0**power for power in range(16, 41, 2))


class Metrics:
    """The controller's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.operations = Counter(
            "torpor_operations",
            "Checkpoints and Restores that came to an end.",
            ["kind", "result", "reason"],
            registry=self.registry,
        )
        self.pause = Histogram(
            "torpor_checkpoint_freeze_seconds",
            "How long pods stood still.",
            buckets=PAUSES_S,
            registry=self.registry,
        )
        self.size = Histogram(
            "torpor_checkpoint_size_bytes",
            "Size of the state of a pod.",
            buckets=SIZES_BYTES,
            registry=self.registry,
        )
        self.duration = Histogram(
            "torpor_operation_duration_seconds",
            "From the creation of the object to Ready.",
            ["kind"],
            buckets=DURATIONS_S,
            registry=self.registry,
        )
        self.leader = Gauge(
            "torpor_controller_leader", "1 while this process leads.", registry=self.registry
        )
        self.queued = Gauge(
            "torpor_controller_queue_length", "Objects that wait.", ["kind"], registry=self.registry
        )
        self.errors = Counter(
            "torpor_controller_reconcile_errors",
            "Reconciles that ended in an error and are tried again.",
            ["kind"],
            registry=self.registry,
        )

    def ended(self, kind: str, reason: str, *, ready: bool, duration_s: float) -> None:
        """Count an object that has come to its end."""
        self.operations.labels(kind, "success" if ready else "failure", reason).inc()
        if ready:
            self.duration.labels(kind).observe(duration_s)

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        """Observe a finished checkpoint."""
        if checkpoint.status.pause:
            self.pause.observe(parse_duration_s(checkpoint.status.pause))
        if checkpoint.status.size_bytes:
            self.size.observe(checkpoint.status.size_bytes)

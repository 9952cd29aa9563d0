# SPDX-License-Identifier: Apache-2.0
"""``torpor-controller``: one leader that assigns work, creates pods and sums up states."""

import argparse
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.errors import Error, Refused
from torpor.plugin.api.common import CONTROLLER_MANAGER, RESTORE_LABEL
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.controller.metrics import Metrics
from torpor.plugin.controller.podtemplate import HelperImage
from torpor.plugin.controller.reconcile import Cluster, reconcilers
from torpor.plugin.k8s import logs
from torpor.plugin.k8s.client import Client, Selector, connect
from torpor.plugin.k8s.daemon import served, stop_on_signals
from torpor.plugin.k8s.events import Recorder
from torpor.plugin.k8s.kinds import CHECKPOINTS, NODES, PODS, RESTORES, STORES, Kind
from torpor.plugin.k8s.lease import LeaderElection
from torpor.plugin.k8s.loop import Loop
from torpor.plugin.k8s.queue import Key, WorkQueue
from torpor.plugin.k8s.watch import Watcher

log = logging.getLogger(__name__)

LEASE_NAME = "torpor-controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the controller runs; from arguments, whose defaults come from the environment."""

    namespace: str
    identity: str
    helper: HelperImage
    mounts: Mapping[str, str] | None
    workers: int
    listen: tuple[str, int]
    elect: bool
    kubeconfig: str
    context: str
    log_level: str


class Controller:
    """Watches, queues and workers; started when we lead."""

    def __init__(self, client: Client, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._queues = {kind: WorkQueue() for kind in (CHECKPOINTS, RESTORES, STORES)}
        watchers = {kind: Watcher(client, kind, self._changed(kind)) for kind in self._queues}
        pods = Watcher(client, PODS, self._pod_changed, selector=Selector(labels=RESTORE_LABEL))
        nodes = Watcher(client, NODES, lambda _: None)
        self._pods = pods
        self._watchers = watchers
        self._followed = (*watchers.values(), pods, nodes)
        cluster = Cluster(
            client=client,
            checkpoints=watchers[CHECKPOINTS],
            restores=watchers[RESTORES],
            stores=watchers[STORES],
            nodes=nodes,
            recorder=Recorder(
                client, controller="torpor.dev/controller", instance=settings.identity
            ),
            metrics=metrics,
            helper=settings.helper,
            mounts=settings.mounts,
            manager=CONTROLLER_MANAGER,
        )
        self._loops = [
            Loop(
                reconciler.kind.kind,
                self._queues[reconciler.kind],
                reconciler.reconcile,
                workers=settings.workers,
                on_error=metrics.errors.labels(reconciler.kind.kind).inc,
            )
            for reconciler in reconcilers(cluster)
        ]

    def start(self) -> None:
        """Watch, and work as soon as all is known."""
        for watcher in self._followed:
            watcher.start()
        threading.Thread(target=self._work_when_synced, daemon=True).start()

    def stop(self) -> None:
        """End watches and workers."""
        for watcher in self._followed:
            watcher.stop()
        for loop in self._loops:
            loop.stop()

    @property
    def synced(self) -> bool:
        """True when all kinds were listed once."""
        return all(watcher.synced for watcher in self._followed)

    def measure(self) -> None:
        """Bring gauges up to date."""
        for kind, queue in self._queues.items():
            self._metrics.queued.labels(kind.kind).set(len(queue))

    def _work_when_synced(self) -> None:
        for watcher in self._followed:
            watcher.wait_synced()
        log.info("%d kinds listed, work begins", len(self._followed))
        for loop in self._loops:
            loop.start()

    def _changed(self, kind: Kind) -> Callable[[Key], None]:
        def changed(key: Key) -> None:
            self._queues[kind].add(key)
            if kind is CHECKPOINTS:
                self._wake_restores_of(key)

        return changed

    def _wake_restores_of(self, checkpoint: Key) -> None:
        """A Restore may wait for this Checkpoint."""
        for item in self._watchers[RESTORES].all():
            metadata = item["metadata"]
            wanted = (metadata["namespace"], item["spec"]["checkpointRef"]["name"])
            if wanted == tuple(checkpoint):
                self._queues[RESTORES].add(Key(metadata["namespace"], metadata["name"]))

    def _pod_changed(self, key: Key) -> None:
        pod: JsonObject | None = self._pods.get(key)
        if pod is not None:
            name = str(pod["metadata"]["labels"][RESTORE_LABEL])
            self._queues[RESTORES].add(Key(key.namespace, name))
            return
        for item in self._watchers[RESTORES].all():
            if (item.get("status") or {}).get("podName") == key.name:
                metadata = item["metadata"]
                self._queues[RESTORES].add(Key(metadata["namespace"], metadata["name"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, or until the lead is lost."""
    try:
        settings = _settings(argv)
        logs.configure(settings.log_level)
        client = connect(
            kubeconfig=settings.kubeconfig,
            context=settings.context,
            user_agent="torpor-controller",
        )
        return run(client, settings, stop_on_signals())
    except Error as error:
        sys.stderr.write(f"torpor-controller: {error}\n")
        return error.exit_code


def run(client: Client, settings: Settings, stop: threading.Event) -> int:
    """Lead and work until ``stop``; returns 1 when the lead was lost."""
    metrics = Metrics()
    controller = Controller(client, settings, metrics)
    lost = threading.Event()
    election = LeaderElection(
        client, namespace=settings.namespace, name=LEASE_NAME, identity=settings.identity
    )

    def lead() -> None:
        metrics.leader.set(1)
        controller.start()

    def follow() -> None:
        metrics.leader.set(0)
        controller.stop()
        if not stop.is_set():
            lost.set()
            stop.set()

    def is_ready() -> bool:
        standby = election.takes_part and not election.leading
        return controller.synced or standby

    with served(
        settings.listen,
        metrics.registry,
        healthy=lambda: True,
        ready=is_ready,
        measure=controller.measure,
    ):
        if settings.elect:
            thread = threading.Thread(target=election.run, args=(lead, follow), daemon=True)
            thread.start()
            stop.wait()
            election.stop()
            thread.join(timeout=10)
        else:
            lead()
            stop.wait()
            follow()
    return 1 if lost.is_set() else 0


def _settings(argv: Sequence[str] | None) -> Settings:
    environment = os.environ
    parser = argparse.ArgumentParser(prog="torpor-controller", description=__doc__)
    add = parser.add_argument
    add("--namespace", default=environment.get("POD_NAMESPACE", "default"),
        help="namespace of the Lease")  # fmt: skip
    add("--identity", default=environment.get("POD_NAME") or socket.gethostname())
    add("--image", default=environment.get("TORPOR_IMAGE", ""),
        help="image with the placeholder, for restored pods")  # fmt: skip
    add("--image-pull-policy", default=environment.get("TORPOR_IMAGE_PULL_POLICY", "IfNotPresent"))
    add("--stores", default=environment.get("TORPOR_STORES", ""),
        help="JSON object: where agents mount which store")  # fmt: skip
    add("--workers", type=int, default=4, help="threads for each kind")
    add("--listen", default=environment.get("TORPOR_LISTEN", "0.0.0.0:8080"),
        help="address of /healthz, /readyz and /metrics")  # fmt: skip
    add("--no-leader-election", action="store_true")
    add("--kubeconfig", default="")
    add("--context", default="")
    add("--log-level", default=environment.get("TORPOR_LOG_LEVEL", "info"))
    options = parser.parse_args(argv)
    if not options.image:
        raise Refused(
            "image for restored pods is not given",
            subject="--image",
            remedy="set TORPOR_IMAGE or --image to the image that this program runs from",
        )
    host, _, port = str(options.listen).rpartition(":")
    return Settings(
        namespace=options.namespace,
        identity=options.identity,
        helper=HelperImage(name=options.image, pull_policy=options.image_pull_policy),
        mounts=_mounts(options.stores),
        workers=options.workers,
        listen=(host, int(port)),
        elect=not options.no_leader_election,
        kubeconfig=options.kubeconfig,
        context=options.context,
        log_level=options.log_level,
    )


def _mounts(text: str) -> Mapping[str, str] | None:
    if not text:
        return None
    try:
        parsed = json.loads(text)
        return {str(name): str(path) for name, path in parsed.items()}
    except (ValueError, AttributeError) as error:
        raise Refused(
            "not a JSON object of store names and paths",
            subject="TORPOR_STORES",
            cause=str(error),
            remedy='write it like {"default": "/var/lib/torpor/stores/default"}',
        ) from error


if __name__ == "__main__":
    sys.exit(main())

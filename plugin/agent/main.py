# SPDX-License-Identifier: Apache-2.0
"""``torpor-agent``: does the work of Checkpoints and Restores on its own node."""

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torpor.engine import api
from torpor.engine.errors import Error, Refused
from torpor.engine.version import VERSION
from torpor.plugin.agent import staging
from torpor.plugin.agent.alone import hold
from torpor.plugin.agent.context import Context
from torpor.plugin.agent.jobs import Jobs, sweep_stores
from torpor.plugin.agent.metrics import Metrics
from torpor.plugin.agent.nodefacts import cpu_flags
from torpor.plugin.agent.pidhelper import DEFAULT_SOCKET, PidHelper
from torpor.plugin.agent.procview import NodeView
from torpor.plugin.api.common import NODE_LABEL, node_label
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s import logs
from torpor.plugin.k8s.client import Client, Selector, connect
from torpor.plugin.k8s.daemon import served, stop_on_signals
from torpor.plugin.k8s.errors import NotFound
from torpor.plugin.k8s.kinds import CHECKPOINTS, RESTORES, Kind
from torpor.plugin.k8s.loop import Loop
from torpor.plugin.k8s.queue import Key, WorkQueue
from torpor.plugin.k8s.watch import Watcher
from torpor.plugin.store.volume import VolumeStore

_log = logging.getLogger(__name__)
_SWEEP_EVERY_S = 3600.0
_LOOK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the agent runs; from arguments, whose defaults come from the environment."""

    node_name: str
    stores: Mapping[str, str]
    staging: Path
    view: NodeView
    pid_helper: Path
    workers: int
    listen: tuple[str, int]
    kubeconfig: str
    context: str
    log_level: str


class Agent:
    """Watches what concerns this node, and works on it."""

    def __init__(self, context: Context, *, workers: int) -> None:
        self._context = context
        self._jobs = Jobs(context=context)
        selector = Selector(labels=f"{NODE_LABEL}={node_label(context.node_name)}")
        self._queues: dict[Kind, WorkQueue] = {CHECKPOINTS: WorkQueue(), RESTORES: WorkQueue()}
        self._watchers = {
            kind: Watcher(context.client, kind, queue.add, selector=selector)
            for kind, queue in self._queues.items()
        }
        work: dict[Kind, Callable[[JsonObject], float | None]] = {
            CHECKPOINTS: self._jobs.checkpoint,
            RESTORES: self._jobs.restore,
        }
        self._loops = [
            Loop(
                kind.kind,
                self._queues[kind],
                self._worker(kind, act),
                workers=workers,
                on_error=context.metrics.errors.labels(kind.kind).inc,
            )
            for kind, act in work.items()
        ]
        self._stop = threading.Event()
        self._began = False

    def start(self) -> None:
        """Clean up after a former life, then watch and work."""
        found = staging.recover(self._context.staging)
        if found:
            _log.warning("%d unfinished jobs of a former life were cleaned up", len(found))
        for watcher in self._watchers.values():
            watcher.start()
        for loop in self._loops:
            loop.start()
        self._began = True
        threading.Thread(target=self._forget, args=(found,), name="forget", daemon=True).start()
        threading.Thread(
            target=sweep_stores,
            args=(self._context, self._stop, _SWEEP_EVERY_S),
            name="sweep",
            daemon=True,
        ).start()

    def _forget(self, uids: Sequence[str]) -> None:
        """Drop what a former life left of objects that are over, or gone, by now."""
        while not self.ready:
            if self._stop.wait(_LOOK_AGAIN_S):
                return
        items = [item for watcher in self._watchers.values() for item in watcher.all()]
        open_ones = {item["metadata"]["uid"] for item in items if self._jobs.are_open(item)}
        staging.forget(self._context.staging, set(uids) - open_ones)

    def stop(self) -> None:
        """End watches and workers; a job that is left behind is taken up by the next life."""
        self._stop.set()
        for watcher in self._watchers.values():
            watcher.stop()
        for loop in self._loops:
            loop.stop()

    @property
    def ready(self) -> bool:
        """True when everything was listed once and all workers live."""
        return all(watcher.synced for watcher in self._watchers.values()) and all(
            loop.alive for loop in self._loops
        )

    @property
    def healthy(self) -> bool:
        """False when a worker died: then only a restart helps."""
        return not self._began or all(loop.alive for loop in self._loops)

    def _worker(
        self, kind: Kind, act: Callable[[JsonObject], float | None]
    ) -> Callable[[Key], float | None]:
        def work(key: Key) -> float | None:
            if self._watchers[kind].get(key) is None:
                return None
            # A job writes to the status for a while; what the watch knows may be older.
            item = _fresh(self._context.client, kind, key)
            return act(item) if item is not None else None

        return work


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM."""
    try:
        settings = _settings(argv)
        logs.configure(settings.log_level)
        client = connect(
            kubeconfig=settings.kubeconfig, context=settings.context, user_agent="torpor-agent"
        )
        run(make_context(client, settings), settings, stop_on_signals())
    except Error as error:
        sys.stderr.write(f"torpor-agent: {error}\n")
        return error.exit_code
    return 0


def make_context(client: Client, settings: Settings) -> Context:
    """The real surroundings: this node, the engine, the mounted stores."""
    helper = PidHelper(settings.pid_helper)
    return Context(
        node_name=settings.node_name,
        client=client,
        engine=api,
        view=settings.view,
        staging=settings.staging,
        stores={name: VolumeStore(Path(path)) for name, path in settings.stores.items()},
        choose_pid=helper.choose,
        read_filter=helper.filter,
        metrics=Metrics(),
        cpu_flags=cpu_flags(),
    )


def run(context: Context, settings: Settings, stop: threading.Event) -> None:
    """Work until ``stop``."""
    with ExitStack() as stack:
        context = _with_hook(context, stack)
        agent = Agent(context, workers=settings.workers)
        stack.enter_context(
            served(
                settings.listen,
                context.metrics.registry,
                healthy=lambda: agent.healthy,
                ready=lambda: agent.ready,
            )
        )
        stack.callback(agent.stop)
        if hold(settings.view.cgroups, stop.wait) is None:
            return
        agent.start()
        _log.info(
            "agent of node %s works, %d stores are mounted", context.node_name, len(context.stores)
        )
        stop.wait()


def _with_hook(context: Context, stack: ExitStack) -> Context:
    """Start the runtime hook if it is wanted; without it the agent still does its other work."""
    if not os.environ.get("TORPOR_HOOK_DIR"):
        return context
    from torpor.plugin.hook import backend
    from torpor.plugin.hook import run as hook

    settings = hook.settings_from(os.environ)
    if settings is None:
        return context
    try:
        service = backend.ApiBackend(context.client, context.node_name, version=VERSION)
        server = stack.enter_context(hook.running(settings, service))
    except (Error, OSError) as error:
        _log.error("hook not started, containers cannot ask for checkpoints: %s", error)
        return context
    return replace(context, waiting_in=server.waiting.pids_in)


def _fresh(client: Client, kind: Kind, key: Key) -> JsonObject | None:
    try:
        return client.get(kind, key.namespace, key.name)
    except NotFound:
        return None


def _settings(argv: Sequence[str] | None) -> Settings:
    environment = os.environ
    parser = argparse.ArgumentParser(prog="torpor-agent", description=__doc__)
    add = parser.add_argument
    add("--node-name", default=environment.get("NODE_NAME", ""))
    add("--stores", default=environment.get("TORPOR_STORES", "{}"),
        help="JSON object: CheckpointStore name to mount path")  # fmt: skip
    add("--staging", type=Path,
        default=Path(environment.get("TORPOR_STAGING", "/var/lib/torpor/staging")))  # fmt: skip
    add("--cgroup-root", type=Path,
        default=Path(environment.get("TORPOR_CGROUP_ROOT", "/sys/fs/cgroup")),
        help="where the node's /sys/fs/cgroup is mounted")  # fmt: skip
    add("--host-root", type=Path,
        default=Path(environment.get("TORPOR_HOST_ROOT", "/proc/1/root")),
        help="the node's root directory")  # fmt: skip
    add("--pid-helper", type=Path,
        default=Path(environment.get("TORPOR_PIDHELPER", str(DEFAULT_SOCKET))))  # fmt: skip
    add("--workers", type=int, default=2, help="jobs at a time, of each kind")
    add("--listen", default=environment.get("TORPOR_LISTEN", "0.0.0.0:9808"),
        help="address of /healthz, /readyz and /metrics")  # fmt: skip
    add("--kubeconfig", default="")
    add("--context", default="")
    add("--log-level", default=environment.get("TORPOR_LOG_LEVEL", "info"))
    options = parser.parse_args(argv)
    if not options.node_name:
        raise Refused(
            "the name of the node is not given",
            subject="--node-name",
            remedy="set NODE_NAME from spec.nodeName by the downward API",
        )
    host, _, port = str(options.listen).rpartition(":")
    return Settings(
        node_name=options.node_name,
        stores=_stores(options.stores),
        staging=options.staging,
        view=NodeView(cgroups=options.cgroup_root, host_root=options.host_root),
        pid_helper=options.pid_helper,
        workers=options.workers,
        listen=(host, int(port)),
        kubeconfig=options.kubeconfig,
        context=options.context,
        log_level=options.log_level,
    )


def _stores(text: str) -> Mapping[str, str]:
    try:
        parsed = json.loads(text or "{}")
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

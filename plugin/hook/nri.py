# SPDX-License-Identifier: Apache-2.0
"""NRI plugin: gives annotated containers the means to ask for their checkpoint when they stop.

Facts, measured with containerd 2.1 (tests/e2e/hook): a plugin is told of StopContainer only when
the container has ended, and must answer every call within 2 s. So neither can a checkpoint be
made in a handler, nor is there an event of the runtime that comes before the stop signal. What
does come before it, and may take as long as the pod's grace period, is the preStop command. It
needs a program and a way to the agent inside the container, also in images without a shell and in
namespaces where pods may have no hostPath. That is what this plugin adds: at CreateContainer, a
container of a pod with the annotation

    torpor.dev/checkpoint-on-stop: "true"        or the names of its containers, "web,db"

gets the hook's directory mounted read-only at /.torpor-hook, and its pod names it:

    lifecycle: {preStop: {exec: {command:
      ["/.torpor-hook/torpor-hook", "checkpoint", "--wait", "25s"]}}}

The NRI socket lets whoever has it change every new container of the node; it is mounted into the
agent only if the administrator asks for it.
"""

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from torpor.engine.errors import Error, Unavailable
from torpor.plugin.api.common import ON_STOP_ANNOTATION
from torpor.plugin.hook.server import CLIENT, HOOK_DIRECTORY
from torpor.plugin.hook.ttrpc import TO_PLUGIN, Channel, Frame, broken
from torpor.plugin.proto import nri_pb2 as pb

log = logging.getLogger(__name__)

NRI_SOCKET = Path("/run/nri/nri.sock")
MOUNT_POINT = "/.torpor-hook"
MOUNT_OPTIONS = ("rbind", "ro", "nosuid", "nodev")
RUNTIME_SERVICE = "nri.pkg.api.v1alpha1.Runtime"
RETRY_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NriSettings:
    """Where things are; ``node_directory`` is the hook's directory as the runtime sees it."""

    socket: Path = NRI_SOCKET
    directory: Path = HOOK_DIRECTORY
    node_directory: str = str(HOOK_DIRECTORY)
    name: str = "torpor"
    index: str = "50"


class NriPlugin:
    """One connection to the runtime, made anew when it breaks."""

    EVENTS: tuple[pb.Event, ...] = (pb.CREATE_CONTAINER,)

    def __init__(self, settings: NriSettings) -> None:
        self._settings = settings
        self._stopped = threading.Event()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="nri", daemon=True)
        self.registered = threading.Event()
        self._handlers: dict[str, Callable[[bytes], Message]] = {
            "Configure": self._configure,
            "Synchronize": self._synchronize,
            "CreateContainer": self._create_container,
            "StopContainer": self._stop_container,
            "StateChange": self._state_change,
            "Shutdown": lambda _: pb.Empty(),
        }

    def start(self) -> None:
        """Connect, and stay connected."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the runtime."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("NRI: the connection was gone already")
        self._thread.join()

    def on_stopped(self, pod: pb.PodSandbox, container: pb.Container) -> None:
        """A container has ended; only called by a subclass that subscribes to it."""

    def _run(self) -> None:
        told = False
        while not self._stopped.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    self._connection = connection
                    connection.connect(str(self._settings.socket))
                    told = False
                    self._converse(Channel(connection))
            except (OSError, Error) as error:
                self.registered.clear()
                if not told and not self._stopped.is_set():
                    log.warning("NRI: not connected, trying on: %s", error)
                told = True
            finally:
                self._connection = None
            self._stopped.wait(RETRY_S)

    def _converse(self, channel: Channel) -> None:
        """Register, then serve until the socket closes."""
        request = pb.RegisterPluginRequest(
            plugin_name=self._settings.name, plugin_idx=self._settings.index
        )
        channel.call(RUNTIME_SERVICE, "RegisterPlugin", request)
        while True:
            frame = channel.receive()
            if frame.connection == TO_PLUGIN:
                channel.answer(frame, self._handlers)
            else:
                self._registered(frame)

    def _registered(self, frame: Frame) -> None:
        try:
            response = pb.TtrpcResponse.FromString(frame.body)
        except DecodeError as error:
            raise broken(f"its answer cannot be understood: {error}") from error
        if response.status.code:
            raise Unavailable(
                "the runtime refused the plugin",
                subject="NRI",
                cause=response.status.message,
                remedy="see the [plugins.'io.containerd.nri.v1.nri'] section of its configuration",
            )

    def _configure(self, payload: bytes) -> Message:
        request = pb.ConfigureRequest.FromString(payload)
        log.info("NRI: registered with %s %s", request.runtime_name, request.runtime_version)
        mask = 0
        for event in self.EVENTS:
            mask |= 1 << (event - 1)
        return pb.ConfigureResponse(events=mask)

    def _synchronize(self, payload: bytes) -> Message:
        request = pb.SynchronizeRequest.FromString(payload)
        if not request.more:
            self.registered.set()
        return pb.SynchronizeResponse(more=request.more)

    def _create_container(self, payload: bytes) -> Message:
        request = pb.CreateContainerRequest.FromString(payload)
        response = pb.CreateContainerResponse()
        if not wanted(request.pod, request.container):
            return response
        subject = f"[{request.pod.namespace}/{request.pod.name}/{request.container.name}]"
        if not (self._settings.directory / CLIENT).exists():
            log.warning("%s: the hook is not mounted, its client is not installed", subject)
            return response
        response.adjust.mounts.add(
            destination=MOUNT_POINT,
            type="bind",
            source=self._settings.node_directory,
            options=MOUNT_OPTIONS,
        )
        log.info("%s: the hook is mounted at %s", subject, MOUNT_POINT)
        return response

    def _stop_container(self, payload: bytes) -> Message:
        request = pb.StopContainerRequest.FromString(payload)
        self.on_stopped(request.pod, request.container)
        return pb.StopContainerResponse()

    def _state_change(self, payload: bytes) -> Message:
        pb.StateChangeEvent.FromString(payload)
        return pb.Empty()


def wanted(pod: pb.PodSandbox, container: pb.Container) -> bool:
    """Whether the annotation means this container."""
    value = pod.annotations.get(ON_STOP_ANNOTATION, "").strip()
    if value.lower() in ("", "false"):
        return False
    names = [name.strip() for name in value.split(",")]
    return value.lower() == "true" or container.name in names

# SPDX-License-Identifier: Apache-2.0
"""The NRI plugin against a runtime that this test plays on a real socket."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from torpor.engine.errors import Unavailable
from torpor.plugin.api.common import ON_STOP_ANNOTATION
from torpor.plugin.hook.nri import NriPlugin, NriSettings, wanted
from torpor.plugin.hook.ttrpc import (
    CODE_INTERNAL,
    CODE_UNIMPLEMENTED,
    FRAME_LIMIT,
    REQUEST,
    RESPONSE,
    TO_PLUGIN,
    TO_RUNTIME,
    Channel,
)
from torpor.plugin.proto import nri_pb2 as pb

MUX = struct.Struct(">II")
HEADER = struct.Struct(">IIBB")


class Runtime:
    """The runtime's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(10)
        self.connection: socket.socket | None = None
        self.stream = 1

    def connect(self) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(10)
        self.stream = 1

    def exactly(self, count: int) -> bytes:
        assert self.connection is not None
        return self.connection.recv(count, socket.MSG_WAITALL)

    def receive(self) -> tuple[int, int, int, bytes]:
        connection, _ = MUX.unpack(self.exactly(MUX.size))
        length, stream, kind, flags = HEADER.unpack(self.exactly(HEADER.size))
        assert flags == 0
        return connection, stream, kind, self.exactly(length)

    def send(self, connection: int, stream: int, kind: int, body: Message, cut: int = 0) -> None:
        """Send a message, in two mux frames when ``cut``."""
        data = body.SerializeToString()
        message = HEADER.pack(len(data), stream, kind, 0) + data
        assert self.connection is not None
        for part in (message[:cut], message[cut:]) if cut else (message,):
            self.connection.sendall(MUX.pack(connection, len(part)) + part)

    def call(self, method: str, payload: bytes, cut: int = 0) -> pb.TtrpcResponse:
        request = pb.TtrpcRequest(service="Plugin", method=method, payload=payload)
        self.send(TO_PLUGIN, self.stream, REQUEST, request, cut)
        connection, stream, kind, body = self.receive()
        assert (connection, stream, kind) == (TO_PLUGIN, self.stream, RESPONSE)
        self.stream += 2
        return pb.TtrpcResponse.FromString(body)

    def register(self) -> pb.RegisterPluginRequest:
        self.connect()
        connection, stream, kind, body = self.receive()
        assert (connection, stream, kind) == (TO_RUNTIME, 1, REQUEST)
        request = pb.TtrpcRequest.FromString(body)
        assert (request.service, request.method) == (
            "nri.pkg.api.v1alpha1.Runtime",
            "RegisterPlugin",
        )
        self.send(TO_RUNTIME, stream, RESPONSE, pb.TtrpcResponse())
        return pb.RegisterPluginRequest.FromString(request.payload)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    made = Runtime(tmp_path / "nri.sock")
    yield made
    made.listener.close()
    if made.connection is not None:
        made.connection.close()


@pytest.fixture
def plugin(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NriPlugin]:
    monkeypatch.setattr("torpor.plugin.hook.nri.RETRY_S", 0.05)
    (tmp_path / "torpor-hook").touch()
    settings = NriSettings(
        socket=tmp_path / "nri.sock", directory=tmp_path, node_directory="/run/on-node"
    )
    made = NriPlugin(settings)
    made.start()
    yield made
    made.stop()


def create(value: str, name: str = "web") -> bytes:
    pod = pb.PodSandbox(name="p", namespace="ns", annotations={ON_STOP_ANNOTATION: value})
    request = pb.CreateContainerRequest(pod=pod, container=pb.Container(name=name))
    return request.SerializeToString()


def test_conversation(runtime: Runtime, plugin: NriPlugin) -> None:
    request = runtime.register()
    assert (request.plugin_name, request.plugin_idx) == ("torpor", "50")
    answer = runtime.call("Configure", pb.ConfigureRequest(runtime_name="r").SerializeToString())
    configured = pb.ConfigureResponse.FromString(answer.payload)
    assert configured.events == 1 << (pb.CREATE_CONTAINER - 1)
    runtime.call("Synchronize", pb.SynchronizeRequest(more=True).SerializeToString())
    assert not plugin.registered.is_set()
    runtime.call("Synchronize", b"")
    assert plugin.registered.wait(5)
    answer = runtime.call("CreateContainer", create("true"), cut=7)
    (mount,) = pb.CreateContainerResponse.FromString(answer.payload).adjust.mounts
    assert (mount.destination, mount.source) == ("/.torpor-hook", "/run/on-node")
    assert "ro" in mount.options
    answer = runtime.call("CreateContainer", create("false"))
    assert answer.payload == b""
    assert runtime.call("RunPodSandbox", b"").status.code == CODE_UNIMPLEMENTED
    assert runtime.call("CreateContainer", b"\xff\xff").status.code == CODE_INTERNAL
    assert runtime.call("Shutdown", b"").status.code == 0


def test_without_the_client_nothing_is_mounted(
    runtime: Runtime, plugin: NriPlugin, tmp_path: Path
) -> None:
    runtime.register()
    (tmp_path / "torpor-hook").unlink()
    assert runtime.call("CreateContainer", create("true")).payload == b""


def test_it_connects_again(runtime: Runtime, plugin: NriPlugin) -> None:
    runtime.register()
    runtime.call("Synchronize", b"")
    assert plugin.registered.wait(5)
    assert runtime.connection is not None
    runtime.connection.close()
    runtime.register()


def test_an_answer_that_is_none_ends_the_conversation(runtime: Runtime, plugin: NriPlugin) -> None:
    runtime.connect()
    connection, stream, _, _ = runtime.receive()
    assert runtime.connection is not None
    message = HEADER.pack(2, stream, RESPONSE, 0) + b"\xff\xff"
    runtime.connection.sendall(MUX.pack(connection, len(message)) + message)
    runtime.register()


@pytest.mark.parametrize("frame", [MUX.pack(3, 4), MUX.pack(TO_PLUGIN, FRAME_LIMIT + 1), b""])
def test_what_is_no_frame_ends_the_conversation(frame: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frame)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Unavailable):
            Channel(ours).receive()


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("True", True), ("web", True), ("db, web", True), ("db", False),
     ("false", False), ("", False)],
)  # fmt: skip
def test_which_containers_are_meant(value: str, expected: bool) -> None:
    pod = pb.PodSandbox(annotations={ON_STOP_ANNOTATION: value})
    assert wanted(pod, pb.Container(name="web")) is expected
    assert not wanted(pb.PodSandbox(), pb.Container(name="web"))

# SPDX-License-Identifier: Apache-2.0
"""The hook's two fronts and its backend, with real sockets and a fake API server."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from native.build import build_programs
from torpor.engine.errors import Denied, Refused, Vanished
from torpor.plugin.api.common import ON_STOP_ANNOTATION
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.hook.backend import ApiBackend
from torpor.plugin.hook.caller import Caller, Waiting, container_of, identify
from torpor.plugin.hook.grpcfront import Callers
from torpor.plugin.hook.packets import PACKET_LIMIT
from torpor.plugin.hook.run import running, settings_from
from torpor.plugin.hook.server import HookServer, install_client
from torpor.plugin.k8s.fake_api import FakeApi
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS
from torpor.plugin.proto import hook_pb2 as pb
from torpor.plugin.proto.hook_pb2_grpc import HookStub

CONTAINER = "ab" * 32
NODE = "node-a"
ROOT = Caller(pid=10, uid=0, container_id="")
INSIDE = Caller(pid=11, uid=1000, container_id=CONTAINER)


class Recorder:
    """A backend that remembers who asked for what."""

    def __init__(self, *outcomes: pb.Outcome) -> None:
        self.calls: list[tuple[Caller, pb.CheckpointRequest]] = []
        self.error: Denied | None = None
        self.outcomes = list(outcomes)

    def checkpoint(
        self, caller: Caller, request: pb.CheckpointRequest
    ) -> Iterator[pb.CheckpointEvent]:
        self.calls.append((caller, request))
        if self.error:
            raise self.error
        progress = pb.Progress(checkpoint="ns/cp", phase="Dump", text="3 tasks\x1b[31m", percent=40)
        yield pb.CheckpointEvent(progress=progress)
        outcome = self.outcomes.pop(0) if self.outcomes else pb.OUTCOME_READY
        result = pb.Result(outcome=outcome, checkpoint="ns/cp", reason="Why", message="so " * 9000)
        yield pb.CheckpointEvent(result=result)

    def health(self) -> pb.HealthReply:
        return pb.HealthReply(node=NODE, version="1")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def server(tmp_path: Path, recorder: Recorder) -> Iterator[HookServer]:
    with HookServer(tmp_path / "hook.sock", recorder) as running:
        yield running


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build_programs(tmp_path_factory.mktemp("programs"))
    return next(path for path in built if path.name == "torpor-hook")


def test_grpc_knows_its_caller(server: HookServer, recorder: Recorder) -> None:
    with grpc.insecure_channel(f"unix:{server.socket_path}") as channel:
        stub = HookStub(channel)
        assert stub.Health(pb.HealthRequest(), timeout=10).node == NODE
        events = list(stub.Checkpoint(pb.CheckpointRequest(pod="p"), timeout=10))
    assert [event.WhichOneof("event") for event in events] == ["progress", "result"]
    ((caller, request),) = recorder.calls
    assert (caller.pid, caller.uid) == (os.getpid(), os.getuid())
    assert request.pod == "p"


def test_grpc_reports_a_refusal_as_result(server: HookServer, recorder: Recorder) -> None:
    recorder.error = Denied("not you", subject="hook", cause="reasons", remedy="ask somebody")
    with grpc.insecure_channel(f"unix:{server.socket_path}") as channel:
        (event,) = HookStub(channel).Checkpoint(pb.CheckpointRequest(), timeout=10)
    assert event.result.outcome == pb.OUTCOME_REFUSED
    assert event.result.reason == "Denied"
    assert event.result.message == "hook: not you: reasons; remedy: ask somebody"


def test_an_inner_connection_without_a_name_is_refused() -> None:
    callers = Callers()
    name = callers.add(ROOT)
    assert callers.behind(f"unix-abstract:{name}") is ROOT
    for peer in ("unix:", name, f"unix:{name}", "unix-abstract:guess", f"unix-abstract:{name}x"):
        with pytest.raises(Denied):
            callers.behind(peer)
    callers.remove(name)
    with pytest.raises(Denied):
        callers.behind(f"unix-abstract:{name}")


def test_who_waits_is_known_while_it_waits() -> None:
    waiting = Waiting()
    with waiting.while_answering(INSIDE), waiting.while_answering(ROOT):
        assert waiting.pids_in(CONTAINER) == {INSIDE.pid}
        assert waiting.pids_in("cd" * 32) == frozenset()
    assert waiting.pids_in(CONTAINER) == frozenset()


def test_sockets_go_with_the_server(tmp_path: Path, recorder: Recorder) -> None:
    threads = threading.active_count()
    with HookServer(tmp_path / "hook.sock", recorder):
        assert sorted(os.listdir(tmp_path)) == ["hook.sock", "packet.sock"]
    assert os.listdir(tmp_path) == []
    assert threading.active_count() <= threads + 1  # gRPC's own poller may still be leaving


def run(client: Path, server: HookServer, *arguments: str, text: str = "") -> tuple[int, str]:
    done = subprocess.run(
        [client, *arguments, "--socket", server.packet_path],
        input=text, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [
        (pb.OUTCOME_READY, 0, "checkpoint is ready"),
        (pb.OUTCOME_FAILED, 1, "checkpoint failed"),
        (pb.OUTCOME_RUNNING, 3, "still in progress"),
        (pb.OUTCOME_REFUSED, 1, "refused"),
        (pb.OUTCOME_UNSPECIFIED, 1, "ended in an unknown way"),
    ],
)
def test_client_ends_as_the_checkpoint_does(
    client: Path,
    server: HookServer,
    recorder: Recorder,
    outcome: pb.Outcome,
    status: int,
    words: str,
) -> None:
    recorder.outcomes = [outcome]
    code, text = run(
        client, server, "checkpoint", "--namespace", "ns", "--pod", "p", "--reason", "maintenance",
        "--wait", "25s", "--after", "stop",
    )  # fmt: skip
    assert code == status
    first, second = text.splitlines()
    assert first == "torpor-hook: Dump: 3 tasks [31m"
    assert second.startswith(f"torpor-hook: {words}: ns/cp: Why: so so")
    ((caller, request),) = recorder.calls
    assert caller.uid == os.getuid()
    assert request == pb.CheckpointRequest(
        namespace="ns", pod="p", reason="maintenance", wait_ms=25000, after=pb.AFTER_STOP
    )


STATE = """{
 "ociVersion": "1.2.0", "annotations": {"id": "wrong", "note": "a \\"id\\": {[ \\\\"},
 "root": [{"id": "wrong too"}], "not-id": "no", "id" : "%s", "status": "running", "pid": 7}"""


def test_client_takes_the_container_from_the_runtimes_state(
    client: Path, server: HookServer, recorder: Recorder
) -> None:
    code, _ = run(client, server, "oci", "--wait", "90ms", text=STATE % CONTAINER)
    assert code == 0
    ((_, request),) = recorder.calls
    assert request == pb.CheckpointRequest(container_id=CONTAINER, wait_ms=90)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"id": 5}', '{"id": "a\\"b"}', '{"id": "abc', '["id"]']
)
def test_client_refuses_a_state_without_id(
    client: Path, server: HookServer, recorder: Recorder, text: str
) -> None:
    code, words = run(client, server, "oci", text=text)
    assert code == 1
    assert "no id in the state" in words
    assert recorder.calls == []


@pytest.mark.parametrize(
    "arguments",
    [(), ("checkpont",), ("checkpoint", "--wait"), ("checkpoint", "--wait", "x"),
     ("checkpoint", "--wait", "5d"), ("checkpoint", "--wait", "99999999999"),
     ("checkpoint", "--after", "lunch"), ("checkpoint", "--pdo", "x")],
)  # fmt: skip
def test_client_refuses_wrong_arguments(client: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([client, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_client_says_that_nobody_answers(client: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [client, "checkpoint", "--socket", tmp_path / "no.sock"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "no service at" in done.stderr


def test_client_finds_the_socket_beside_it(
    client: Path, server: HookServer, recorder: Recorder
) -> None:
    installed = install_client(client, server.socket_path.parent)
    assert subprocess.run([installed, "health"], check=False).returncode == 0
    assert recorder.calls == []


@pytest.mark.parametrize(
    "packet", [b"\xff" * 8, b"x" * (PACKET_LIMIT + 1), pb.Call().SerializeToString() or b"\x1a\x00"]
)
def test_packets_that_are_no_call_are_refused(
    server: HookServer, recorder: Recorder, packet: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(str(server.packet_path))
        connection.send(packet)
        answer = pb.Answer.FromString(connection.recv(PACKET_LIMIT))
        assert answer.event.result.outcome == pb.OUTCOME_REFUSED
        assert connection.recv(PACKET_LIMIT) == b""
    assert recorder.calls == []


def test_container_is_found_in_every_shape_of_cgroup_path() -> None:
    v1 = f"12:pids:/kubepods/burstable/pod1/{CONTAINER}\n0::/\n"
    systemd = f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{CONTAINER}.scope\n"
    crio = f"0::/kubepods.slice/crio-{CONTAINER}.scope/app\n"
    assert container_of(v1) == container_of(systemd) == container_of(crio) == CONTAINER
    assert container_of("0::/user.slice/session-3.scope\n") == ""
    assert container_of(f"0::/{'ab' * 33}\n") == ""


ORPHAN = """
import os, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
if os.fork() == 0:
    connection.connect(sys.argv[2])
    os._exit(0)
os.wait()
sys.stdin.read()
"""


def test_a_caller_that_has_ended_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end, subprocess.Popen(
            [sys.executable, "-c", ORPHAN, str(end.fileno()), path],
            pass_fds=[end.fileno()], stdin=subprocess.PIPE,
        ) as process:  # fmt: skip
            connection, _ = listener.accept()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            time.sleep(0.3)
            with connection, pytest.raises(Denied):
                identify(connection)


def test_whole_hook_as_the_agent_starts_it(
    client: Path, tmp_path: Path, recorder: Recorder
) -> None:
    assert settings_from({}) is None
    directory = tmp_path / "hook"
    found = settings_from({"TORPOR_HOOK_DIR": str(directory), "TORPOR_NRI_SOCKET": ""})
    assert found is not None
    assert found.nri_socket is None
    absent = tmp_path / "nri.sock"
    settings = replace(found, client=client, nri_socket=absent)
    with running(settings, recorder):
        assert subprocess.run([directory / "torpor-hook", "health"], check=False).returncode == 0
    assert os.listdir(directory) == ["torpor-hook"]


# --- the backend -----------------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as running:
        yield running


def pod(*, node: str = NODE, annotated: bool = True, deleting: bool = False) -> JsonObject:
    metadata: JsonObject = {"namespace": "ns", "name": "web", "uid": "12345678-aaaa"}
    if annotated:
        metadata["annotations"] = {ON_STOP_ANNOTATION: "true"}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    statuses = [{"name": "main", "containerID": f"containerd://{CONTAINER}"}]
    status = {"phase": "Running", "containerStatuses": statuses}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": status}


def condition(kind: str, reason: str) -> JsonObject:
    when = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": "True", "reason": reason, "message": "m",
            "lastTransitionTime": when}  # fmt: skip


def finish(api: FakeApi, *conditions: JsonObject) -> threading.Thread:
    """Another part of torpor: gives the one Checkpoint progress, then its end."""

    def work() -> None:
        while not (found := api.kinds(CHECKPOINTS)):
            time.sleep(0.02)
        item = found[0]
        item["status"] = {"progress": {"phase": "Dump", "text": "now", "percent": 5}}
        api.put(CHECKPOINTS, item)
        time.sleep(0.5)
        item["status"]["conditions"] = list(conditions)
        api.put(CHECKPOINTS, item)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def collect(
    api: FakeApi, caller: Caller, *, wait_ms: int = 10000, **fields: str
) -> list[pb.CheckpointEvent]:
    backend = ApiBackend(api.client(), NODE)
    request = pb.CheckpointRequest(wait_ms=wait_ms, reason="why", **fields)
    return list(backend.checkpoint(caller, request))


def test_a_container_asks_for_its_own_pod(api: FakeApi) -> None:
    api.put(PODS, pod(deleting=True))
    worker = finish(api, condition("Ready", "Completed"))
    events = collect(api, INSIDE)
    worker.join()
    assert events[0].progress.phase == "Dump"
    assert events[-1].result.outcome == pb.OUTCOME_READY
    assert events[-1].result.checkpoint == "ns/web-stop-12345678"
    (made,) = api.kinds(CHECKPOINTS)
    assert made["spec"] == {
        "podRef": {"name": "web", "uid": "12345678-aaaa"},
        "afterCheckpoint": "Continue",
        "timeout": "10s",
    }
    assert made["metadata"]["labels"] == {"torpor.dev/requested-by": "hook"}
    assert made["metadata"]["annotations"] == {"torpor.dev/reason": "why"}


def test_containers_that_stop_together_share_a_checkpoint(api: FakeApi) -> None:
    api.put(PODS, pod(deleting=True))
    worker = finish(api, condition("Failed", "Refused"))
    results: list[pb.CheckpointEvent] = []
    backend = ApiBackend(api.client(), NODE)
    request = pb.CheckpointRequest(wait_ms=10000)
    threads = [
        threading.Thread(target=lambda: results.append([*backend.checkpoint(INSIDE, request)][-1]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in (*threads, worker):
        thread.join()
    assert [r.result.outcome for r in results] == [pb.OUTCOME_FAILED] * 2
    assert len(api.kinds(CHECKPOINTS)) == 1


def test_the_wait_may_end_first(api: FakeApi) -> None:
    api.put(PODS, pod())
    events = collect(api, ROOT, wait_ms=300, namespace="ns", pod="web")
    assert events[-1].result.outcome == pb.OUTCOME_RUNNING
    assert events[-1].result.checkpoint.startswith("ns/web-hook-")


def test_a_deleted_checkpoint_is_a_failure(api: FakeApi) -> None:
    api.put(PODS, pod())

    def remove() -> None:
        while not (found := api.kinds(CHECKPOINTS)):
            time.sleep(0.02)
        api.remove(CHECKPOINTS, "ns", found[0]["metadata"]["name"])

    worker = threading.Thread(target=remove)
    worker.start()
    events = collect(api, ROOT, container_id=CONTAINER)
    worker.join()
    assert events[-1].result.reason == "Vanished"


@pytest.mark.parametrize(
    ("caller", "the_pod", "fields", "error"),
    [
        (INSIDE, pod(annotated=False), {}, Denied),
        (INSIDE, pod(), {"namespace": "ns", "pod": "other"}, Denied),
        (INSIDE, pod(), {"namespace": "other", "pod": "web"}, Denied),
        (
            Caller(pid=5, uid=1000, container_id=""),
            pod(),
            {"namespace": "ns", "pod": "web"},
            Denied,
        ),
        (Caller(pid=5, uid=0, container_id="cd" * 32), pod(), {}, Vanished),
        (ROOT, pod(), {}, Refused),
        (ROOT, pod(), {"namespace": "ns", "pod": "nobody"}, Vanished),
        (ROOT, pod(), {"container_id": "cd" * 32}, Vanished),
        (ROOT, pod(node="node-b"), {"namespace": "ns", "pod": "web"}, Refused),
        (INSIDE, pod(node="node-b"), {}, Vanished),
    ],
)
def test_who_may_not_ask(
    api: FakeApi,
    caller: Caller,
    the_pod: JsonObject,
    fields: dict[str, str],
    error: type[Exception],
) -> None:
    api.put(PODS, the_pod)
    with pytest.raises(error):
        collect(api, caller, **fields)
    assert api.kinds(CHECKPOINTS) == []


def test_numbers_of_the_client_are_those_of_the_protocol() -> None:
    source = (Path(__file__).parents[2] / "native/hook/hook.c").read_text()
    for prefix, message in (
        ("CALL", pb.Call), ("ANSWER", pb.Answer), ("EVENT", pb.CheckpointEvent),
        ("REQUEST", pb.CheckpointRequest), ("PROGRESS", pb.Progress), ("RESULT", pb.Result),
    ):  # fmt: skip
        for field in message.DESCRIPTOR.fields:
            name = f"{prefix}_{field.name.upper()}"
            if name in source:
                assert f"{name} = {field.number}" in source
    for name, number in (*pb.Outcome.items(), *pb.After.items()):
        if name in source:
            assert f"{name} = {number}" in source

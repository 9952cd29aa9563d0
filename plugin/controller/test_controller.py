# SPDX-License-Identifier: Apache-2.0
"""The whole controller against a server over HTTP; the test plays agent and kubelet."""

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from torpor.plugin.api.common import AGENT_MANAGER, DATA_FINALIZER, NODE_LABEL
from torpor.plugin.api.conditions import condition
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.podrecord import record
from torpor.plugin.controller import main
from torpor.plugin.controller.podtemplate import HelperImage
from torpor.plugin.k8s.apply import StatusWriter
from torpor.plugin.k8s.fake_api import FakeApi
from torpor.plugin.k8s.kinds import CHECKPOINTS, EVENTS, NODES, PODS, RESTORES, STORES, Kind

POD: JsonObject = {
    "metadata": {"name": "p", "namespace": "n"},
    "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]},
    "status": {"phase": "Running"},
}


def eventually(check: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


class Running:
    """A controller in threads of this process."""

    def __init__(self, api: FakeApi, identity: str = "one", port: int = 0) -> None:
        self.stop = threading.Event()
        settings = main.Settings(
            namespace="torpor",
            identity=identity,
            helper=HelperImage(name="torpor"),
            mounts={"s": "/stores/s"},
            workers=2,
            listen=("127.0.0.1", port),
            elect=False,
            kubeconfig="",
            context="",
            log_level="info",
        )
        args = (api.client(), settings, self.stop)
        self.thread = threading.Thread(target=main.run, args=args, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(timeout=20)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        for name in ("a", "b"):
            server.put(NODES, {"metadata": {"name": name}, "status": ready})
        server.put(PODS, POD)
        spec = {"volume": {"hostPath": {"path": "/s"}}, "default": True}
        server.put(STORES, {"metadata": {"name": "s"}, "spec": spec})
        yield server


@pytest.fixture
def controller(api: FakeApi) -> Iterator[Running]:
    running = Running(api)
    yield running
    running.end()


def state(api: FakeApi, kind: Kind, name: str, condition_type: str = "Ready") -> str:
    item = api.take(kind, "" if kind is STORES else "n", name) or {}
    for entry in item.get("status", {}).get("conditions", []):
        if entry["type"] == condition_type:
            return f"{entry['status']}/{entry['reason']}"
    return ""


def ask(api: FakeApi, **spec: object) -> JsonObject:
    body = {"podRef": {"name": "p"}, **spec}
    return api.put(CHECKPOINTS, {"metadata": {"name": "ck", "namespace": "n"}, "spec": body})


def act_as_agent(api: FakeApi, kind: Kind, name: str, fields: JsonObject, *done: str) -> None:
    item = api.take(kind, "n", name)
    assert item is not None
    writer = StatusWriter(api.client(), kind, AGENT_MANAGER)
    writer.write(item, fields, [condition(entry, True, "Completed") for entry in done])


def checkpointed(api: FakeApi) -> None:
    eventually(lambda: state(api, CHECKPOINTS, "ck", "Assigned") == "True/Assigned")
    fields = {"podTemplate": record(POD), "containers": [{"name": "c"}], "pause": "3ms"}
    act_as_agent(api, CHECKPOINTS, "ck", fields, "Captured", "Stored")


def test_checkpoint_then_restore(api: FakeApi, controller: Running) -> None:
    api.put(RESTORES, {"metadata": {"name": "r", "namespace": "n"},
                       "spec": {"checkpointRef": {"name": "ck"}, "nodeName": "b"}})  # fmt: skip
    eventually(lambda: state(api, RESTORES, "r") == "False/CheckpointNotReady")
    ask(api)
    checkpointed(api)
    eventually(lambda: state(api, CHECKPOINTS, "ck") == "True/Completed")
    item = api.take(CHECKPOINTS, "n", "ck")
    assert item is not None
    assert item["metadata"]["labels"] == {NODE_LABEL: "a"}
    assert item["metadata"]["finalizers"] == [DATA_FINALIZER]
    assert item["status"]["pause"] == "3ms", "the agent's fields stay"

    eventually(lambda: state(api, RESTORES, "r", "PodCreated") == "True/PodCreated")
    restored = (api.take(RESTORES, "n", "r") or {})["status"]
    pod = api.take(PODS, "n", restored["podName"])
    assert pod is not None
    assert pod["metadata"]["uid"] == restored["podUID"]
    pod["spec"]["nodeName"] = "b"
    api.put(PODS, pod)
    eventually(lambda: state(api, RESTORES, "r", "Assigned") == "True/Assigned")
    act_as_agent(api, RESTORES, "r", {"downtime": "1s"}, "Restored")
    pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "c", "started": True}]}
    api.put(PODS, pod)
    eventually(lambda: state(api, RESTORES, "r") == "True/Completed")
    eventually(lambda: not (api.take(RESTORES, "n", "r") or {})["metadata"]["finalizers"])
    reasons = {(e["regarding"]["kind"], e["reason"]) for e in api.kinds(EVENTS)}
    assert {("Checkpoint", "Completed"), ("Pod", "Completed"), ("Restore", "Completed")} <= reasons
    total = len(api.kinds(EVENTS))
    api.put(PODS, pod)
    time.sleep(0.5)
    assert len(api.kinds(EVENTS)) == total, "no event without a transition"


def test_work_goes_on_after_a_restart(api: FakeApi) -> None:
    first = Running(api)
    ask(api, afterCheckpoint="Stop")
    eventually(lambda: state(api, CHECKPOINTS, "ck", "Assigned") == "True/Assigned")
    first.end()
    checkpointed(api)
    second = Running(api, "two")
    eventually(lambda: state(api, CHECKPOINTS, "ck") == "True/Completed")
    assert state(api, CHECKPOINTS, "ck", "SourceStopped") == "True/Completed"
    assert api.take(PODS, "n", "p") is None
    second.end()


def test_faults_of_the_api_server_do_not_end_work(api: FakeApi, controller: Running) -> None:
    api.fail(500, 3)
    api.fail(409, 2)
    ask(api)
    api.break_watches()
    checkpointed(api)
    api.fail(503, 2)
    eventually(lambda: state(api, CHECKPOINTS, "ck") == "True/Completed", 20)


def test_missing_pod_fails_and_says_so(api: FakeApi, controller: Running) -> None:
    api.remove(PODS, "n", "p")
    ask(api)
    eventually(lambda: state(api, CHECKPOINTS, "ck", "Failed") == "True/PodNotFound")
    eventually(lambda: ("PodNotFound", "Warning") in
               {(e["reason"], e["type"]) for e in api.kinds(EVENTS)})  # fmt: skip


def test_rejected_pod_fails_the_restore(api: FakeApi, controller: Running) -> None:
    ask(api)
    checkpointed(api)
    eventually(lambda: state(api, CHECKPOINTS, "ck") == "True/Completed")
    taken = dict(POD, metadata={"name": "wanted", "namespace": "n"})
    api.put(PODS, taken)
    api.put(RESTORES, {"metadata": {"name": "r", "namespace": "n"},
                       "spec": {"checkpointRef": {"name": "ck"}, "podName": "wanted"}})  # fmt: skip
    eventually(lambda: state(api, RESTORES, "r", "Failed") == "True/PodNameTaken")


def test_deletion_waits_for_the_agent(api: FakeApi, controller: Running) -> None:
    ask(api)
    checkpointed(api)
    eventually(lambda: state(api, CHECKPOINTS, "ck") == "True/Completed")
    api.client().delete(CHECKPOINTS, "n", "ck")
    time.sleep(0.5)
    assert api.take(CHECKPOINTS, "n", "ck") is not None
    act_as_agent(api, CHECKPOINTS, "ck", {}, "DataDeleted")
    eventually(lambda: api.take(CHECKPOINTS, "n", "ck") is None)


def test_store_state(api: FakeApi, controller: Running) -> None:
    api.put(
        STORES, {"metadata": {"name": "other"}, "spec": {"volume": {"hostPath": {"path": "/"}}}}
    )
    eventually(lambda: state(api, STORES, "s") == "True/Mounted")
    eventually(lambda: state(api, STORES, "other") == "False/NotMounted")


def test_health_and_metrics(api: FakeApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    running = Running(api, port=port)
    ask(api)
    checkpointed(api)
    eventually(lambda: state(api, CHECKPOINTS, "ck") == "True/Completed")

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    assert get("/healthz") == "ok\n"
    assert get("/readyz") == "ok\n"
    eventually(lambda: 'kind="Checkpoint",reason="Completed",result="success"} 1.0'
               in get("/metrics"))  # fmt: skip
    assert "torpor_checkpoint_freeze_seconds_count 1.0" in get("/metrics")
    with pytest.raises(urllib.error.HTTPError):
        get("/other")
    running.end()


def test_settings_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--image", ""]) != 0
    assert "--image" in capsys.readouterr().err
    assert main.main(["--image", "i", "--stores", "nonsense"]) != 0
    assert "TORPOR_STORES" in capsys.readouterr().err

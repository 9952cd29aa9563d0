# SPDX-License-Identifier: Apache-2.0
"""The kubectl plugin against a server over HTTP, with the test in the controller's role."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from torpor.plugin.api.conditions import Condition, condition
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.apply import StatusWriter
from torpor.plugin.k8s.fake_api import FakeApi
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS, RESTORES, Kind
from torpor.plugin.kubectl import main, show

Run = Callable[..., int]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        server.put(PODS, {"metadata": {"name": "p", "namespace": "shop"}, "spec": {}})
        yield server


@pytest.fixture
def run(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
        "current-context": "x",
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return lambda *args: main.main([*args, "--kubeconfig", str(path)])


def answer(api: FakeApi, kind: Kind, fields: JsonObject, *conditions: Condition) -> None:
    """Wait for an object of the kind and set its status, as controller and agent would."""

    def act() -> None:
        while not api.kinds(kind):
            time.sleep(0.02)
        (item,) = api.kinds(kind)
        StatusWriter(api.client(), kind, "test").write(item, fields, conditions)

    threading.Thread(target=act, daemon=True).start()


DONE = condition("Ready", True, "Completed", "long " * 20 + "every word [of it] to the end")
STATUS = {"sizeBytes": 3 * 2**20, "pause": "12ms", "storeName": "default", "nodeName": "a"}


def test_checkpoint_waits_and_sums_up(
    api: FakeApi, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(api, CHECKPOINTS, STATUS, DONE)
    assert run("checkpoint", "p", "--stop", "-c", "web", "--store", "s", "--name", "ck") == 0
    printed = capsys.readouterr()
    assert "checkpoint ck is Ready: pod p, 3 MiB, pause 12ms, store default" in printed.out
    assert "kubectl torpor restore ck -n shop" in printed.out
    item = api.take(CHECKPOINTS, "shop", "ck")
    assert item is not None
    spec = item["spec"]
    assert spec["afterCheckpoint"] == "Stop"
    assert spec["containers"] == ["web"]
    assert spec["storeRef"] == {"name": "s"}
    assert spec["podRef"]["uid"], "pinned to the pod that was there when it was asked"


def test_failure_has_its_exit_code(
    api: FakeApi, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = (
        condition("Ready", False, "Refused"),
        condition("Failed", True, "Refused", "fd 9: io_uring"),
    )
    answer(api, CHECKPOINTS, {}, *failed)
    assert run("checkpoint", "p") == 2
    assert "Refused: fd 9: io_uring" in capsys.readouterr().err


def test_absent_pod_is_told_before_anything_is_made(
    api: FakeApi, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("checkpoint", "absent") != 0
    assert "not found" in capsys.readouterr().err
    assert api.kinds(CHECKPOINTS) == []


@pytest.mark.parametrize("asked", ["PreCopy", "precopy"])
def test_ways_of_memory_are_called_as_in_the_api(run: Run, api: FakeApi, asked: str) -> None:
    assert run("checkpoint", "p", "--no-wait", "--memory", asked, "--max-rounds", "3") == 0
    (item,) = api.kinds(CHECKPOINTS)
    assert item["spec"]["memory"] == {"way": "PreCopy", "maxRounds": 3}


def test_no_wait_returns_at_once(run: Run, api: FakeApi) -> None:
    assert run("checkpoint", "p", "--no-wait") == 0
    assert len(api.kinds(CHECKPOINTS)) == 1


def test_restore(api: FakeApi, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(CHECKPOINTS, {"metadata": {"name": "ck", "namespace": "shop"},
                          "spec": {"podRef": {"name": "p"}}})  # fmt: skip
    answer(api, RESTORES, {"podName": "p-1", "nodeName": "b"}, DONE)
    assert run("restore", "ck", "--node", "b", "--pod-name", "p-1") == 0
    assert "pod p-1 on node b" in capsys.readouterr().out
    (item,) = api.kinds(RESTORES)
    assert item["spec"]["nodeName"] == "b"
    assert run("restore", "absent") != 0


def test_ls_and_inspect(api: FakeApi, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls") == 0
    assert "no Checkpoints or Restores in namespace shop" in capsys.readouterr().err
    item = api.put(CHECKPOINTS, {"metadata": {"name": "ck", "namespace": "shop"},
                                 "spec": {"podRef": {"name": "p"}}})  # fmt: skip
    containers = [
        {"name": "web", "tasks": 4, "memoryBytes": 2048, "memoryWay": "frozen: asked for"}
    ]
    writer = StatusWriter(api.client(), CHECKPOINTS, "test")
    writer.write(item, STATUS | {"containers": containers}, [DONE])
    assert run("ls") == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:3] == ["ck", "p", "a"]
    assert run("ls", "-A", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["metadata"]["name"] == "ck"
    assert run("inspect", "checkpoint/ck") == 0
    printed = capsys.readouterr().out
    assert "web: 4 tasks, 2 KiB memory" in printed
    assert "memory by frozen: asked for" in printed
    assert "Ready=True" in printed
    assert "every word [of it] to the end" in printed, "a pipe gets whole lines"
    assert run("inspect", "ck", "-o", "name") == 0
    assert capsys.readouterr().out == "checkpoint/ck\n"
    assert run("inspect", "absent") != 0
    assert run("inspect", "pod/x") == main.EXIT_USAGE


@pytest.mark.parametrize("args", [("checkpoint",), ("no-such-verb",), ("ls", "-o", "yaml")])
def test_wrong_usage(args: tuple[str, ...]) -> None:
    assert main.main(list(args)) == main.EXIT_USAGE


def test_bad_duration_is_told_first(run: Run, api: FakeApi) -> None:
    assert run("checkpoint", "p", "--timeout", "soon") != 0
    assert api.kinds(CHECKPOINTS) == []


def test_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["ls", "--kubeconfig", str(tmp_path / "absent")]) != 0
    assert "no cluster to talk to" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0
    assert "_KUBECTL_TORPOR_COMPLETE" in capsys.readouterr().out


def test_sizes_and_ages() -> None:
    assert show.format_size(None) == "-"
    assert show.format_size(512) == "512 B"
    assert show.format_size(1536) == "1.5 KiB"
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert show.format_age(now - timedelta(seconds=90), now) == "90s"
    assert show.format_age(now - timedelta(hours=3), now) == "3h"

# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds, in installations that lack one thing each."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s.fake_api import FakeApi
from torpor.plugin.k8s.kinds import CHECKPOINTS, LEASES, NODES, PODS, STORES
from torpor.plugin.kubectl.doctor import examine

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
NS = "torpor-system"


def conditions(*, ready: bool, message: str = "") -> JsonObject:
    one = {
        "type": "Ready", "status": str(ready), "reason": "R", "message": message,
        "lastTransitionTime": "2026-01-02T11:00:00Z",
    }  # fmt: skip
    return {"conditions": [one]}


def pod(
    api: FakeApi, program: str, node: str, *, ready: bool = True, image: str = "torpor:1"
) -> None:
    api.put(PODS, {
        "metadata": {"name": f"{program}-{node}", "namespace": NS,
                     "labels": {"app.kubernetes.io/component": program.removeprefix("torpor-")}},
        "spec": {"nodeName": node, "containers": [{"command": [program], "image": image}]},
        "status": conditions(ready=ready),
    })  # fmt: skip


def node(api: FakeApi, name: str, **spec: object) -> None:
    api.put(NODES, {"metadata": {"name": name}, "spec": spec, "status": conditions(ready=True)})


def lease(api: FakeApi, ago_s: float) -> None:
    moment = (NOW - timedelta(seconds=ago_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    api.put(LEASES, {"metadata": {"name": "torpor-controller", "namespace": NS},
                     "spec": {"holderIdentity": "c-1", "renewTime": moment}})  # fmt: skip


def store(api: FakeApi, name: str, *, ready: bool = True, default: bool = True) -> None:
    api.put(STORES, {
        "metadata": {"name": name},
        "spec": {"volume": {"hostPath": {"path": "/s"}}, "default": default},
        "status": conditions(ready=ready, message="agents mount it at /x"),
    })  # fmt: skip


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """Everything is as it should be."""
    with FakeApi() as server:
        for name in ("a", "b"):
            node(server, name)
            pod(server, "torpor-agent", name)
        node(server, "plane", taints=[{"key": "control-plane", "effect": "NoSchedule"}])
        pod(server, "torpor-controller", "a")
        lease(server, 2)
        store(server, "default")
        yield server


def wrong(api: FakeApi) -> list[str]:
    found = examine(api.client(), NOW)
    assert all(each.ok or each.remedy for each in found)
    return [each.text for each in found if not each.ok]


def test_a_sound_installation(api: FakeApi) -> None:
    found = [str(each) for each in examine(api.client(), NOW)]
    assert found == [
        "ok     store default: agents mount it at /x",
        "ok     1 controller ready, c-1 leads",
        "ok     2 nodes with an agent that is ready",
        "ok     0 Checkpoints and Restores, failed: none",
    ]


def test_nothing_is_installed() -> None:
    with FakeApi() as api:
        assert wrong(api) == [
            "there is no CheckpointStore", "no controller is ready", "no agent runs",
        ]  # fmt: skip


def test_a_node_without_a_ready_agent(api: FakeApi) -> None:
    node(api, "c")
    pod(api, "torpor-agent", "c", ready=False, image="torpor:2")
    agents, pods = wrong(api)
    assert agents == "agents of several versions run: torpor:1, torpor:2"
    assert pods == "pods of c cannot be checkpointed: no agent is ready there"
    remedies = [each.remedy for each in examine(api.client(), NOW)]
    assert f"kubectl -n {NS} describe pod torpor-agent-c" in remedies


def test_nobody_leads(api: FakeApi) -> None:
    lease(api, 600)
    assert wrong(api) == ["1 controllers are ready, and none has led since 11:50:00 UTC"]


def test_stores(api: FakeApi) -> None:
    store(api, "default", default=False)
    store(api, "other", ready=False, default=False)
    assert wrong(api) == [
        "store other is not ready: agents mount it at /x", "no store is the default",
    ]  # fmt: skip


def test_an_object_that_does_not_go_away(api: FakeApi) -> None:
    status = conditions(ready=False, message="data could not be deleted")
    status["conditions"].append(status["conditions"][0] | {"type": "Failed", "status": "True"})
    api.put(CHECKPOINTS, {
        "metadata": {"name": "ck", "namespace": "shop",
                     "deletionTimestamp": "2026-01-02T11:00:00Z"},
        "spec": {"podRef": {"name": "p"}}, "status": status,
    })  # fmt: skip
    assert wrong(api) == ["Checkpoint shop/ck does not go away: data could not be deleted"]
    assert examine(api.client(), NOW)[-1].text == "1 Checkpoint or Restore, failed: 1 R"


def test_what_may_not_be_listed_is_told(api: FakeApi) -> None:
    api.failures.append(403)
    first, *others = examine(api.client(), NOW)
    assert "not looked at" in first.text
    assert not first.ok
    assert all(each.ok for each in others)

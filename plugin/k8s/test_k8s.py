# SPDX-License-Identifier: Apache-2.0
"""Client, watch, apply, events and lease against a server on the loopback."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from torpor.plugin.api.conditions import condition
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.k8s import errors
from torpor.plugin.k8s.apply import StatusWriter, owned_status
from torpor.plugin.k8s.client import Client, Selector
from torpor.plugin.k8s.events import Event, Recorder
from torpor.plugin.k8s.fake_api import FakeApi
from torpor.plugin.k8s.kinds import CHECKPOINTS, EVENTS, LEASES, NODES, PODS
from torpor.plugin.k8s.lease import LeaderElection, LeaseTimes
from torpor.plugin.k8s.queue import Key, WorkQueue, backoff_s
from torpor.plugin.k8s.watch import Watcher


def pod(name: str, **labels: str) -> JsonObject:
    return {"metadata": {"name": name, "namespace": "n", "labels": labels}, "spec": {}}


def eventually(check: Callable[[], object], timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        yield server


class Following:
    """A watcher and the keys it reported."""

    def __init__(self, api: FakeApi, selector: Selector | None = None, **options: float) -> None:
        self.seen: list[Key] = []
        chosen = selector or Selector(namespace="n")
        resync_s = options.get("resync_s", 600.0)
        self.watcher = Watcher(
            api.client(), PODS, self.seen.append, selector=chosen, resync_s=resync_s
        )
        self.watcher.start()

    def names(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.watcher.all()}


@pytest.fixture
def following(api: FakeApi) -> Iterator[Following]:
    api.put(PODS, pod("first"))
    started = Following(api)
    assert started.watcher.wait_synced(5)
    yield started
    started.watcher.stop()


def test_errors_are_ours(api: FakeApi) -> None:
    client = api.client()
    with pytest.raises(errors.NotFound) as caught:
        client.get(PODS, "n", "absent")
    assert caught.value.code == 404
    assert caught.value.reason == "Vanished"
    client.create(PODS, "n", pod("p"))
    with pytest.raises(errors.AlreadyExists):
        client.create(PODS, "n", pod("p"))
    for code, kind in ((403, errors.Forbidden), (422, errors.Invalid), (503, errors.Unreachable)):
        api.fail(code)
        with pytest.raises(kind):
            client.get(PODS, "n", "p")
    api.stop()
    with pytest.raises(errors.Unreachable):
        client.get(PODS, "n", "p")


def test_list_goes_through_all_pages(api: FakeApi) -> None:
    for number in range(230):
        api.put(PODS, pod(f"p{number:03}", app="a" if number % 2 else "b"))
    client = api.client()
    assert len(client.list(PODS).items) == 230
    assert len(client.list(PODS, Selector(namespace="n", labels="app=a")).items) == 115
    assert client.list(PODS, Selector(namespace="other")).items == ()


def test_delete_with_another_uid_is_refused(api: FakeApi) -> None:
    item = api.put(PODS, pod("p"))
    with pytest.raises(errors.Conflict):
        api.client().delete(PODS, "n", "p", uid="another")
    api.client().delete(PODS, "n", "p", uid=item["metadata"]["uid"], grace_period_s=1)
    assert api.take(PODS, "n", "p") is None


def test_watch_reports_changes(api: FakeApi, following: Following) -> None:
    assert following.seen == [Key("n", "first")]
    api.put(PODS, pod("second"))
    eventually(lambda: Key("n", "second") in following.seen)
    api.remove(PODS, "n", "first")
    eventually(lambda: following.names() == {"second"})
    assert following.watcher.get(Key("n", "first")) is None


def test_watch_goes_on_after_disconnects(api: FakeApi, following: Following) -> None:
    for round_number in range(3):
        eventually(lambda: sum(r.startswith("WATCH") for r in api.requests) > round_number)  # noqa: B023
        api.break_watches()
        api.put(PODS, pod(f"after-{round_number}"))
        eventually(lambda: f"after-{round_number}" in following.names())  # noqa: B023
    lists = [r for r in api.requests if r.startswith("GET")]
    assert len(lists) == 1, "a broken stream is taken up, not listed anew"


def test_gone_means_a_new_list_with_deletions(api: FakeApi, following: Following) -> None:
    api.stop()
    api.remove(PODS, "n", "first")
    api.put(PODS, pod("while-away"))
    api.compact()
    api.start()
    eventually(lambda: following.names() == {"while-away"})
    eventually(lambda: following.seen.count(Key("n", "first")) == 2)


def test_watch_survives_a_restart_of_the_server(api: FakeApi, following: Following) -> None:
    api.stop()
    time.sleep(0.3)
    api.start()
    api.put(PODS, pod("after-restart"))
    eventually(lambda: "after-restart" in following.names())


def test_watch_starts_while_the_server_is_away(api: FakeApi) -> None:
    api.stop()
    started = Following(api)
    assert not started.watcher.wait_synced(0.3)
    api.put(PODS, pod("p"))
    api.start()
    assert started.watcher.wait_synced(10)
    assert started.names() == {"p"}
    started.watcher.stop()


def test_watch_selects_by_label(api: FakeApi) -> None:
    started = Following(api, Selector(labels="torpor.dev/node=a"))
    assert started.watcher.wait_synced(5)
    api.put(PODS, pod("mine", **{"torpor.dev/node": "a"}))
    api.put(PODS, pod("other", **{"torpor.dev/node": "b"}))
    eventually(lambda: started.names() == {"mine"})
    started.watcher.stop()


def test_resync_reports_again(api: FakeApi) -> None:
    api.put(PODS, pod("p"))
    started = Following(api, resync_s=1.0)
    eventually(lambda: len(started.seen) == 1)
    for _ in range(6):
        time.sleep(0.2)
        api.break_watches()
    eventually(lambda: len(started.seen) >= 2)
    started.watcher.stop()


def test_remember_never_goes_back(api: FakeApi, following: Following) -> None:
    old = api.take(PODS, "n", "first")
    assert old is not None
    new = api.put(PODS, pod("first", state="new"))
    eventually(lambda: following.watcher.get(Key("n", "first")) == new)
    following.watcher.remember(old)
    assert following.watcher.get(Key("n", "first")) == new


def _status(item: JsonObject) -> dict[str, str]:
    return {c["type"]: c["reason"] for c in item["status"]["conditions"]}


def test_two_managers_keep_out_of_each_others_way(api: FakeApi) -> None:
    item = api.put(CHECKPOINTS, {"metadata": {"name": "c", "namespace": "n"}, "spec": {}})
    client = api.client()
    ours = StatusWriter(client, CHECKPOINTS, "torpor-controller")
    agent = StatusWriter(client, CHECKPOINTS, "torpor-agent")
    ours.write(item, {"nodeName": "a"}, [condition("Assigned", True, "Assigned")])
    # The agent's copy is stale here: the write has to read again and lose nothing.
    stored = agent.write(item, {"sizeBytes": 5}, [condition("Captured", True, "Completed")])
    assert stored["status"]["nodeName"] == "a"
    assert _status(stored) == {"Assigned": "Assigned", "Captured": "Completed"}
    again = agent.write(stored, {"pause": "1ms"}, [condition("Stored", False, "InProgress")])
    assert again["status"]["sizeBytes"] == 5
    assert set(_status(again)) == {"Assigned", "Captured", "Stored"}
    assert owned_status(again, "torpor-controller").keys() == {"nodeName", "conditions"}
    without = agent.write(again, {"sizeBytes": None})
    assert "sizeBytes" not in without["status"]
    assert without["status"]["pause"] == "1ms"


def test_a_new_object_of_the_same_name_is_not_written(api: FakeApi) -> None:
    item = api.put(CHECKPOINTS, {"metadata": {"name": "c", "namespace": "n"}, "spec": {}})
    api.remove(CHECKPOINTS, "n", "c")
    api.put(CHECKPOINTS, {"metadata": {"name": "c", "namespace": "n"}, "spec": {}})
    with pytest.raises(errors.Conflict):
        StatusWriter(api.client(), CHECKPOINTS, "m").write(item, {"nodeName": "a"})


def test_event_is_on_both_objects(api: FakeApi) -> None:
    item = api.put(CHECKPOINTS, {"metadata": {"name": "c", "namespace": "n"}, "spec": {}})
    about = api.put(PODS, pod("p"))
    recorder = Recorder(api.client(), controller="torpor.dev/controller", instance="i")
    recorder.emit(Event(reason="Completed", action="Checkpoint", note="x" * 2000), item, about)
    written = api.kinds(EVENTS)
    assert [e["regarding"]["kind"] for e in written] == ["Checkpoint", "Pod"]
    assert [e["related"]["kind"] for e in written] == ["Pod", "Checkpoint"]
    assert all(len(e["note"]) == 1024 and e["eventTime"].endswith("Z") for e in written)


def test_lost_event_does_not_stop_work(api: FakeApi) -> None:
    item = api.put(NODES, {"metadata": {"name": "a"}})
    api.fail(500)
    recorder = Recorder(api.client(), controller="c", instance="i")
    recorder.emit(Event(reason="R", action="A", note="n"), item)
    assert api.kinds(EVENTS) == []


class Candidate:
    """One process of an election."""

    def __init__(self, client: Client, identity: str) -> None:
        self.log: list[str] = []
        self.election = LeaderElection(
            client,
            namespace="torpor",
            name="torpor-controller",
            identity=identity,
            times=LeaseTimes(duration_s=1.0, deadline_s=0.6, renew_s=0.1),
        )
        self.thread = threading.Thread(
            target=self.election.run,
            args=(lambda: self.log.append("lead"), lambda: self.log.append("end")),
            daemon=True,
        )
        self.thread.start()


def test_one_leads_and_the_other_follows_it(api: FakeApi) -> None:
    first = Candidate(api.client(), "first")
    eventually(lambda: first.election.leading)
    second = Candidate(api.client(), "second")
    time.sleep(1.5)
    assert not second.election.leading
    first.election.stop()
    eventually(lambda: second.election.leading)
    assert first.log == ["lead", "end"]
    lease = api.take(LEASES, "torpor", "torpor-controller")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "second"
    assert lease["spec"]["leaseTransitions"] == 1
    second.election.stop()


def test_a_leader_without_server_stops_leading(api: FakeApi) -> None:
    only = Candidate(api.client(), "only")
    eventually(lambda: only.election.leading)
    api.stop()
    eventually(lambda: not only.election.leading)
    assert only.log == ["lead", "end"]


def test_a_dead_holder_is_replaced(api: FakeApi) -> None:
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 1, "leaseTransitions": 3}
    api.put(
        LEASES, {"metadata": {"name": "torpor-controller", "namespace": "torpor"}, "spec": spec}
    )
    heir = Candidate(api.client(), "heir")
    time.sleep(0.5)
    assert not heir.election.leading
    eventually(lambda: heir.election.leading)
    heir.election.stop()


def test_queue_has_each_key_once_and_one_worker_a_key() -> None:
    queue = WorkQueue()
    a, b = Key("n", "a"), Key("n", "b")
    queue.add(a)
    queue.add(a)
    queue.add(b, delay_s=0.05)
    assert len(queue) == 2
    assert queue.take() == a
    queue.add(a)
    assert queue.take() == b
    queue.done(a)
    assert queue.take() == a
    queue.done(a, failed=True)
    assert len(queue) == 1
    queue.close()
    assert queue.take() is None


def test_backoff_grows_and_ends() -> None:
    assert backoff_s(1) <= 0.5
    assert 30 <= backoff_s(50) <= 60

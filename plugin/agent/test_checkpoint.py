# SPDX-License-Identifier: Apache-2.0
"""Checkpoint jobs: a small API server, a node of files, a real store, a recorded engine."""

import threading
import time
from dataclasses import replace

import pytest

from torpor.engine.errors import Denied, KernelError, Refused, Vanished
from torpor.engine.options import After, MemoryWay, PreCopyRules, TcpPolicy
from torpor.plugin.agent.dumpoptions import runtime_filters
from torpor.plugin.agent.jobs import Jobs
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS

NS = "ns"


def test_continue(world):
    item, jobs = world.take()
    assert jobs.checkpoint(item) is None
    status, found = world.conditions(CHECKPOINTS, "cp")
    assert found["Captured"]["status"] == found["Stored"]["status"] == "True"
    assert status["pause"] == "12.3ms"
    assert status["pauseSteps"] == {"stop": "300us", "threads": "12ms"}
    assert status["sizeBytes"] > 4096
    assert status["containers"][0]["name"] == "app"
    assert status["containers"][0]["imageDigest"].startswith("sha256:")
    assert status["containers"][0]["tasks"] == 1
    assert status["containers"][0]["memoryWay"] == "snapshot: the tasks run on"
    assert status["podTemplate"]["labels"] == {"a": "b"}
    assert "nodeName" not in status["podTemplate"]["spec"]
    assert status["completedAt"]
    assert "progress" not in status
    paths = {entry.path for entry in world.stored().manifest.files}
    assert {"images/app/core-1.img", "rootfs/app/entries.jsonl", "volumes/data/data"} <= paths
    (tree,) = world.engine.trees
    assert (tree.pid, tree.after, tree.tcp) == (100, After.CONTINUE, TcpPolicy.CLOSE)
    assert tree.container
    assert tree.runtime_seccomp_filters == 1
    assert tree.freezer_cgroups[0].name == f"{100:064x}"
    assert list(world.context.staging.iterdir()) == []


LOCALHOST = {"seccompProfile": {"type": "Localhost", "localhostProfile": "own.json"}}


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_profile_of_the_operators_own_must_be_readable(world, is_readable):
    def fail(tid, index):
        raise Denied("the pid helper refused", subject=f"thread {tid}, filter {index}")

    pod = world.pod()
    pod["spec"]["securityContext"] = LOCALHOST
    world.api.put(PODS, pod)
    world.run_container(pod, "app", 100)
    read = world.context.read_filter if is_readable else fail
    Jobs(context=replace(world.context, read_filter=read)).checkpoint(world.checkpoint())
    _, found = world.conditions(CHECKPOINTS, "cp")
    assert found["Captured"]["status"] == str(is_readable)
    assert len(world.engine.trees) == is_readable
    if is_readable:
        assert world.engine.trees[0].read_filter is read
    else:
        assert "agent.readSeccompFilters" in found["Captured"]["message"]


def test_memory_is_taken_as_asked(world):
    world.run_container(world.pod(), "app", 100)
    Jobs(context=world.context).checkpoint(
        world.checkpoint(memory={"way": "PreCopy", "maxRounds": 3})
    )
    (tree,) = world.engine.trees
    assert tree.memory is MemoryWay.PRECOPY
    assert tree.precopy == PreCopyRules(max_rounds=3)
    told = world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["message"]
    assert told.endswith("; memory of app was taken by snapshot: the tasks run on"), told


def test_rounds_of_a_pod_that_stops_have_the_time_of_the_road(world):
    item, jobs = world.take(
        afterCheckpoint="Stop", timeout="300ms", memory={"way": "PreCopy", "maxRounds": 3}
    )
    jobs.checkpoint(item)
    rules = world.engine.trees[0].precopy
    assert rules.max_rounds == 3
    assert rules.pause_goal_s > PreCopyRules().pause_goal_s
    assert rules.max_seconds <= 0.5


def test_a_finished_checkpoint_is_left_alone(world):
    item, jobs = world.take()
    jobs.checkpoint(item)
    jobs.checkpoint(world.api.take(CHECKPOINTS, NS, "cp"))
    assert world.engine.calls == ["dump", "thaw"]


def test_two_containers_are_one_cut(world):
    pod = world.pod(containers=("app", "side"))
    world.run_container(pod, "app", 100)
    world.run_container(pod, "side", 200)
    Jobs(context=world.context).checkpoint(world.checkpoint(tcp={"established": "Refuse"}))
    assert world.engine.calls == ["dump", "thaw"]
    assert [tree.pid for tree in world.engine.trees] == [100, 200]
    assert world.engine.trees[0].tcp is TcpPolicy.REFUSE
    files = {entry.path for entry in world.stored().manifest.files}
    assert sum(path.startswith("volumes/") for path in files) == 2  # one volume: entries and data


def test_stop_holds_the_tasks_until_the_pod_is_deleted(world):
    item, jobs = world.take(afterCheckpoint="Stop")
    seen = []

    def controller():
        while True:
            _status, found = world.conditions(CHECKPOINTS, "cp")
            if found.get("Stored", {}).get("status") == "True":
                break
            time.sleep(0.01)
        seen.append(world.engine.ended)
        world.stored()
        time.sleep(0.1)
        seen.append(world.engine.ended)
        world.api.remove(PODS, NS, "web")

    thread = threading.Thread(target=controller)
    thread.start()
    jobs.checkpoint(item)
    thread.join()
    assert seen == [False, False]
    assert world.engine.ended
    status, _ = world.conditions(CHECKPOINTS, "cp")
    assert status["pause"] == "12.3ms"


def test_stop_without_controller_takes_it_back(world):
    item, jobs = world.take(afterCheckpoint="Stop", timeout="500ms")
    jobs.checkpoint(item)
    _status, found = world.conditions(CHECKPOINTS, "cp")
    assert not world.engine.ended
    assert found["Stored"]["status"] == "False"
    assert found["Stored"]["reason"] == "Timeout"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused("io_uring", remedy="close it"), "Refused"),
        (KernelError("x", errno=5), "KernelError"),
        (ZeroDivisionError("oops"), "Bug"),
    ],
)
def test_engine_fails(world, error, reason):
    item, jobs = world.take()
    world.engine.errors = [error]
    jobs.checkpoint(item)
    _status, found = world.conditions(CHECKPOINTS, "cp")
    assert found["Captured"]["status"] == "False"
    assert found["Captured"]["reason"] == reason
    assert "Stored" not in found
    assert world.context.stores["main"].list() == ()
    assert list(world.context.staging.iterdir()) == []
    jobs.checkpoint(world.api.take(CHECKPOINTS, NS, "cp"))  # it is over
    assert world.engine.calls.count("dump") == 1


def test_vanished_is_tried_again(world):
    item, jobs = world.take()
    world.engine.errors = [Vanished("a task went"), Vanished("a task went")]
    jobs.checkpoint(item)
    assert world.engine.calls.count("dump") == 3
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_container_exits_during_the_dump(world):
    item, jobs = world.take()

    def exit_now():
        world.node.end(100)
        pod = world.api.take(PODS, NS, "web")
        state = {"terminated": {"reason": "Completed"}}
        pod["status"]["containerStatuses"][0]["state"] = state
        world.api.put(PODS, pod)

    world.engine.before = exit_now
    jobs.checkpoint(item)
    found = world.conditions(CHECKPOINTS, "cp")[1]["Captured"]
    assert found["reason"] == "Vanished"
    assert "Completed" in found["message"]


def test_pod_deleted_during_the_dump(world):
    item, jobs = world.take()
    world.engine.before = lambda: world.api.remove(PODS, NS, "web")
    world.engine.errors = [Vanished("init went")]
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == "PodNotFound"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uid": "another"}, "PodNotFound"),
        ({"deletionTimestamp": "2025-01-01T00:00:00Z"}, "PodDeleting"),
    ],
)
def test_pod_is_not_the_one(world, change, reason):
    item, jobs = world.take()
    pod = world.api.take(PODS, NS, "web")
    pod["metadata"] |= change
    world.api.put(PODS, pod)
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == reason
    assert world.engine.calls == []


def test_a_pod_that_asked_for_it_may_be_deleted_already(world):
    item, jobs = world.take(afterCheckpoint="Stop")
    pod = world.api.take(PODS, NS, "web")
    pod["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    world.api.put(PODS, pod)
    item["metadata"]["labels"] = {"torpor.dev/requested-by": "hook"}
    jobs.checkpoint(world.api.put(CHECKPOINTS, item))
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"
    assert world.engine.ended


def test_exec_session_is_waited_for_then_refused(world):
    item, jobs = world.take()
    world.node.task(150, 50, 9, f"6:freezer:/kubepods/podu/{100:064x}\n", name="bash")
    jobs.checkpoint(item)
    found = world.conditions(CHECKPOINTS, "cp")[1]["Captured"]
    assert found["reason"] == "Refused"
    assert "kubectl exec" in found["message"]


def test_exec_probe_passes(world):
    item, jobs = world.take()
    world.node.task(150, 50, 9, f"6:freezer:/kubepods/podu/{100:064x}\n", name="probe")
    timer = threading.Timer(0.08, lambda: world.node.end(150))
    timer.start()
    jobs.checkpoint(item)
    timer.join()
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_exec_in_the_last_moment_begins_again(world):
    item, jobs = world.take()
    cgroup = world.tmp / "node" / "cg" / f"freezer/kubepods/podu/{100:064x}" / "cgroup.procs"

    def come():
        if world.engine.calls.count("dump") == 1:
            world.node.task(150, 50, 9, f"6:freezer:/kubepods/podu/{100:064x}\n")
            cgroup.write_text("100\n150\n")
            threading.Timer(0.05, lambda: world.node.end(150)).start()

    world.engine.before = come
    jobs.checkpoint(item)
    assert world.engine.calls.count("dump") == 2
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_api_server_is_away_for_a_moment(world):
    item, jobs = world.take()
    world.engine.before = lambda: world.api.fail(503, 3)
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_runtime_seccomp_filters():
    def pod(pod_context=None, own=None):
        container = {"name": "app"} | ({"securityContext": own} if own else {})
        return {"spec": {"containers": [container], "securityContext": pod_context}}

    default = {"seccompProfile": {"type": "RuntimeDefault"}}
    unconfined = {"seccompProfile": {"type": "Unconfined"}}
    assert runtime_filters(pod(), "app", 0) == 0
    assert runtime_filters(pod(default), "app", 2) == 1
    assert runtime_filters(pod(default, unconfined), "app", 2) == 0
    assert runtime_filters(pod(default, {"privileged": True}), "app", 1) == 0

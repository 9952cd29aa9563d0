# SPDX-License-Identifier: Apache-2.0
"""Whole jobs against a small API server, a node of files, a real store and a recorded engine."""

import threading
import time
from pathlib import Path

import pytest

from torpor.engine.errors import KernelError, Refused, Vanished
from torpor.engine.options import After, MemoryWay, TcpPolicy
from torpor.plugin.agent.checkpoint import reference, runtime_filters
from torpor.plugin.agent.jobs import MOST_ATTEMPTS, Jobs
from torpor.plugin.agent.restore import is_same_image
from torpor.plugin.agent.staging import JobFolder, forget, recover
from torpor.plugin.api import codec
from torpor.plugin.api.conditions import condition
from torpor.plugin.api.v1alpha1 import Checkpoint
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS, RESTORES
from torpor.plugin.store.base import StoreFailed

NS = "ns"


def take(world, **spec):
    """A pod with one container and one changed file, checkpointed."""
    pod = world.pod()
    merged = world.run_container(pod, "app", 100)
    (merged / "data" / "volume-file").write_text("in the volume")
    world.node.change(100, "etc/conf", "changed")
    item = world.checkpoint(**spec)
    return item, Jobs(context=world.context)


def stored(world, name="cp"):
    item = world.api.take(CHECKPOINTS, NS, name)
    return world.context.stores["main"].verify(
        reference(codec.decode(Checkpoint, item)), digest=item["status"]["manifestDigest"]
    )


def test_continue(world):
    item, jobs = take(world)
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
    paths = {entry.path for entry in stored(world).manifest.files}
    assert {"images/app/core-1.img", "rootfs/app/entries.jsonl", "volumes/data/data"} <= paths
    (tree,) = world.engine.trees
    assert (tree.pid, tree.after, tree.tcp) == (100, After.CONTINUE, TcpPolicy.CLOSE)
    assert tree.container
    assert tree.runtime_seccomp_filters == 1
    assert tree.freezer_cgroups[0].name == f"{100:064x}"
    assert list(world.context.staging.iterdir()) == []


def test_memory_is_taken_as_asked(world):
    world.run_container(world.pod(), "app", 100)
    Jobs(context=world.context).checkpoint(
        world.checkpoint(memory={"way": "PreCopy", "maxRounds": 3})
    )
    (tree,) = world.engine.trees
    assert tree.memory is MemoryWay.PRECOPY
    assert (tree.precopy.max_rounds, tree.precopy.one_directory) == (3, True)


def test_a_finished_checkpoint_is_left_alone(world):
    item, jobs = take(world)
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
    files = {entry.path for entry in stored(world).manifest.files}
    assert sum(path.startswith("volumes/") for path in files) == 2  # one volume: entries and data


def test_stop_holds_the_tasks_until_the_pod_is_deleted(world):
    item, jobs = take(world, afterCheckpoint="Stop")
    seen = []

    def controller():
        while True:
            _status, found = world.conditions(CHECKPOINTS, "cp")
            if found.get("Stored", {}).get("status") == "True":
                break
            time.sleep(0.01)
        seen.append(world.engine.ended)
        stored(world)
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
    item, jobs = take(world, afterCheckpoint="Stop", timeout="500ms")
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
    item, jobs = take(world)
    world.engine.errors = [error]
    jobs.checkpoint(item)
    _status, found = world.conditions(CHECKPOINTS, "cp")
    assert found["Captured"]["status"] == "False"
    assert found["Captured"]["reason"] == reason
    assert "Stored" not in found
    assert world.context.stores["main"]._root.joinpath("v1").exists() is False
    assert list(world.context.staging.iterdir()) == []
    jobs.checkpoint(world.api.take(CHECKPOINTS, NS, "cp"))  # it is over
    assert world.engine.calls.count("dump") == 1


def test_vanished_is_tried_again(world):
    item, jobs = take(world)
    world.engine.errors = [Vanished("a task went"), Vanished("a task went")]
    jobs.checkpoint(item)
    assert world.engine.calls.count("dump") == 3
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_container_exits_during_the_dump(world):
    item, jobs = take(world)

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
    item, jobs = take(world)
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
    item, jobs = take(world)
    pod = world.api.take(PODS, NS, "web")
    pod["metadata"] |= change
    world.api.put(PODS, pod)
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == reason
    assert world.engine.calls == []


def test_a_pod_that_asked_for_it_may_be_deleted_already(world):
    item, jobs = take(world, afterCheckpoint="Stop")
    pod = world.api.take(PODS, NS, "web")
    pod["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    world.api.put(PODS, pod)
    item["metadata"]["labels"] = {"torpor.dev/requested-by": "hook"}
    jobs.checkpoint(world.api.put(CHECKPOINTS, item))
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"
    assert world.engine.ended


def test_exec_session_is_waited_for_then_refused(world):
    item, jobs = take(world)
    world.node.task(150, 50, 9, f"6:freezer:/kubepods/podu/{100:064x}\n", name="bash")
    jobs.checkpoint(item)
    found = world.conditions(CHECKPOINTS, "cp")[1]["Captured"]
    assert found["reason"] == "Refused"
    assert "kubectl exec" in found["message"]


def test_exec_probe_passes(world):
    item, jobs = take(world)
    world.node.task(150, 50, 9, f"6:freezer:/kubepods/podu/{100:064x}\n", name="probe")
    timer = threading.Timer(0.08, lambda: world.node.end(150))
    timer.start()
    jobs.checkpoint(item)
    timer.join()
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_exec_in_the_last_moment_begins_again(world):
    item, jobs = take(world)
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


class BrokenStore:
    def __init__(self, error=None, wait=None):
        self.error, self.wait = error, wait

    def put(self, *_, **__):
        if self.wait:
            self.wait.wait()
        raise self.error

    verify = get = delete = put


@pytest.mark.parametrize("after", ["Continue", "Stop"])
def test_store_fails(world, after):
    item, jobs = take(world, afterCheckpoint=after)
    world.context.stores["main"] = BrokenStore(StoreFailed("no space is left", remedy="enlarge"))
    jobs.checkpoint(item)
    found = world.conditions(CHECKPOINTS, "cp")[1]
    assert found["Captured"]["status"] == "True"
    assert (found["Stored"]["status"], found["Stored"]["reason"]) == ("False", "StoreFailed")
    assert "enlarge" in found["Stored"]["message"]
    assert not world.engine.ended


def test_store_hangs(world):
    item, jobs = take(world, afterCheckpoint="Stop", timeout="300ms")
    release = threading.Event()
    world.context.stores["main"] = BrokenStore(StoreFailed("late"), release)
    jobs.checkpoint(item)
    release.set()
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["reason"] == "Timeout"
    assert not world.engine.ended


def test_store_is_not_mounted(world):
    item, jobs = take(world)
    world.context.stores.clear()
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == "StoreNotFound"
    assert world.engine.calls == []


def test_api_server_is_away_for_a_moment(world):
    item, jobs = take(world)
    world.engine.before = lambda: world.api.fail(503, 3)
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_one_job_a_pod(world):
    item, jobs = take(world)
    other = world.checkpoint("other")
    answers = []
    world.engine.before = lambda: answers.append(jobs.checkpoint(other))
    jobs.checkpoint(item)
    assert answers == [1.0]
    assert jobs.checkpoint(other) is None


# ---- restarts -----------------------------------------------------------------------------


def in_progress(world):
    item = world.api.take(CHECKPOINTS, NS, "cp")
    item["status"]["conditions"].append(
        codec.encode(condition("Captured", False, "InProgress", "pod is captured"))
    )
    return world.api.put(CHECKPOINTS, item)


def test_a_job_of_a_former_life_is_done_again(world):
    _, jobs = take(world)
    item = in_progress(world)
    folder = JobFolder(world.context.staging, item["metadata"]["uid"])
    folder.begin()
    folder.tree.mkdir()
    (folder.tree / "half").write_text("x")
    assert recover(world.context.staging) == [item["metadata"]["uid"]]
    assert not folder.tree.exists()
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"
    assert list(world.context.staging.iterdir()) == []


def test_an_agent_that_lost_its_volume_leaves_the_object_to_the_next(world):
    _, jobs = take(world)
    item = in_progress(world)
    folder = JobFolder(world.context.staging, item["metadata"]["uid"])
    world.engine.errors = [KernelError("cannot write", errno=2, subject="images")]
    world.engine.taken_away = folder.path
    with pytest.raises(KernelError):
        jobs.checkpoint(item)
    after = world.conditions(CHECKPOINTS, "cp")[1]
    assert "KernelError" not in {one["reason"] for one in after.values()}
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"


def test_what_is_left_of_a_job_is_forgotten_with_its_object(world):
    _, jobs = take(world)
    item = in_progress(world)
    assert jobs.are_open(item)
    for uid in ("uid-of-one-that-is-gone", item["metadata"]["uid"]):
        JobFolder(world.context.staging, uid).begin()
    found = recover(world.context.staging)
    forget(world.context.staging, set(found) - {item["metadata"]["uid"]})
    assert [path.name for path in world.context.staging.iterdir()] == [item["metadata"]["uid"]]
    jobs.checkpoint(item)
    assert not jobs.are_open(world.api.take(CHECKPOINTS, NS, "cp"))


def test_too_many_lives(world):
    _, jobs = take(world)
    item = in_progress(world)
    for _ in range(MOST_ATTEMPTS):
        JobFolder(world.context.staging, item["metadata"]["uid"]).begin()
        recover(world.context.staging)
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == "AgentRestarted"
    assert world.engine.calls == []


def test_pod_went_with_the_former_life(world):
    _, jobs = take(world)
    item = in_progress(world)
    JobFolder(world.context.staging, item["metadata"]["uid"]).begin()
    world.api.remove(PODS, NS, "web")
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == "AgentRestarted"


def test_a_frozen_cgroup_of_a_former_life_is_thawed(world, tmp_path: Path):
    cgroup = tmp_path / "frozen"
    cgroup.mkdir()
    (cgroup / "cgroup.freeze").write_text("1\n")
    folder = JobFolder(world.context.staging, "uid-1")
    folder.begin()
    folder.remember_cgroups([cgroup, tmp_path / "gone"])
    recover(world.context.staging)
    assert (cgroup / "cgroup.freeze").read_text().startswith("0")


# ---- objects that are not for us ----------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        {"nodeName": "node-b"},
        {"conditions": []},
        {"conditions": [("Assigned", True, "Assigned"), ("Ready", True, "Completed")]},
        {"conditions": [("Assigned", True, "Assigned"), ("Failed", True, "Timeout")]},
        {"conditions": [("Assigned", True, "Assigned"), ("Stored", True, "Completed")]},
        {"conditions": [("Assigned", True, "Assigned"), ("Captured", False, "Refused")]},
    ],
)
def test_no_work(world, status):
    item, jobs = take(world)
    if "conditions" in status:
        status["conditions"] = [codec.encode(condition(*each)) for each in status["conditions"]]
    item["status"] |= status
    assert jobs.checkpoint(world.api.put(CHECKPOINTS, item)) is None
    assert world.engine.calls == []


def test_data_is_deleted_with_the_object(world):
    item, jobs = take(world)
    jobs.checkpoint(item)
    item = world.api.take(CHECKPOINTS, NS, "cp")
    item["metadata"]["finalizers"] = ["torpor.dev/checkpoint-data"]
    item["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    item = world.api.put(CHECKPOINTS, item)
    store = world.context.stores["main"]
    world.context.stores["main"] = BrokenStore(StoreFailed("gone"))
    assert jobs.checkpoint(item) is not None
    assert world.conditions(CHECKPOINTS, "cp")[1]["DataDeleted"]["reason"] == "StoreUnreachable"
    world.context.stores["main"] = store
    assert jobs.checkpoint(world.api.take(CHECKPOINTS, NS, "cp")) is None
    assert world.conditions(CHECKPOINTS, "cp")[1]["DataDeleted"]["status"] == "True"
    assert store.list() == ()


# ---- restore ------------------------------------------------------------------------------


def prepare_restore(world, *, containers=("app",), image_id="sha256:1", comm="torpor-wait"):
    """A checkpointed pod, a Restore, and a new pod whose placeholders wait."""
    pod = world.pod(containers=containers)
    for index, name in enumerate(containers):
        merged = world.run_container(pod, name, 100 + index)
        (merged / "data" / "volume-file").write_text("in the volume")
        world.node.change(100 + index, "etc/conf", f"changed by {name}")
    jobs = Jobs(context=world.context)
    jobs.checkpoint(world.checkpoint())
    item = world.api.take(CHECKPOINTS, NS, "cp")
    item["status"]["conditions"].append(codec.encode(condition("Ready", True, "Completed")))
    world.api.put(CHECKPOINTS, item)
    new = world.pod(
        "web-2", containers=containers, annotations={"torpor.dev/restore-uid": "uid-re"}
    )
    roots = [
        world.run_container(new, name, 500 + index, comm=comm, image_id=image_id)
        for index, name in enumerate(containers)
    ]
    world.engine.calls.clear()
    return jobs, world.restore(), roots


def restored(world):
    return world.conditions(RESTORES, "re")[1]["Restored"]


def test_restore(world):
    jobs, item, (root,) = prepare_restore(world)
    (root / "data" / "stale").write_text("x")
    jobs.restore(item)
    status, found = world.conditions(RESTORES, "re")
    assert found["Restored"]["status"] == "True"
    assert status["containers"] == [
        {"name": "app", "pid": 500, "tasks": 2, "restoreSeconds": "0.010"}
    ]
    assert status["restoredAt"]
    assert status["downtime"]
    assert (root / "etc" / "conf").read_text() == "changed by app"
    assert sorted(path.name for path in (root / "data").iterdir()) == ["volume-file"]
    assert (root / ".torpor" / "restored").exists()
    assert not (root / ".torpor" / "give-up").exists()
    (options,) = world.engine.takeovers
    assert options.pid == 500
    assert options.choose_pid is world.context.choose_pid
    assert list(world.context.staging.iterdir()) == []
    jobs.restore(world.api.take(RESTORES, NS, "re"))
    assert len(world.engine.takeovers) == 1


def test_restore_waits_for_the_placeholder(world):
    jobs, item, _ = prepare_restore(world, comm="runc:[2:INIT]")
    timer = threading.Timer(0.1, lambda: world.node.status(500, name="torpor-wait"))
    timer.start()
    jobs.restore(item)
    timer.join()
    assert restored(world)["status"] == "True"


def test_restore_of_another_image(world):
    jobs, item, (root,) = prepare_restore(world, image_id="sha256:2")
    jobs.restore(item)
    assert restored(world)["reason"] == "ImageMismatch"
    assert "another image" in (root / ".torpor" / "give-up").read_text()
    assert world.engine.takeovers == []


def test_restore_fails_in_the_engine(world, monkeypatch):
    jobs, item, roots = prepare_restore(world, containers=("app", "side"))
    killed = []
    monkeypatch.setattr("torpor.plugin.agent.restore.end_task", lambda pid: not killed.append(pid))
    original = world.engine.takeover

    def second_fails(options, **more):
        if options.pid == 501:
            raise Refused("cannot", remedy="do not")
        return original(options, **more)

    world.engine.takeover = second_fails
    jobs.restore(item)
    assert restored(world)["reason"] == "Refused"
    assert killed == [500]
    assert (roots[1] / ".torpor" / "give-up").exists()
    assert not (roots[1] / ".torpor" / "restored").exists()


def damage_chunk(world):
    for path in (world.tmp / "store" / "v1" / "chunks").glob("??/*.zst"):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)


def lose_store(world):
    (world.tmp / "store").rename(world.tmp / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "reason"), [(damage_chunk, "BadImage"), (lose_store, "StoreFailed")]
)
def test_restore_of_damaged_data(world, harm, reason):
    jobs, item, (root,) = prepare_restore(world)
    harm(world)
    jobs.restore(item)
    assert restored(world)["reason"] == reason
    assert (root / ".torpor" / "give-up").exists()
    assert world.engine.takeovers == []


def test_restore_on_another_architecture(world, monkeypatch):
    jobs, item, (root,) = prepare_restore(world)
    monkeypatch.setattr(
        "torpor.plugin.agent.nodefacts.os.uname", lambda: type("U", (), {"machine": "riscv64"})
    )
    jobs.restore(item)
    assert restored(world)["reason"] == "BadImage"
    assert "riscv64" in restored(world)["message"]
    assert (root / ".torpor" / "give-up").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"annotations": {}}, "PodNotFound"),
        ({"uid": "another"}, "PodNotFound"),
        ({"deletionTimestamp": "2025-01-01T00:00:00Z"}, "PodDeleting"),
    ],
)
def test_restore_into_a_pod_that_is_not_ours(world, change, reason):
    jobs, item, (root,) = prepare_restore(world)
    pod = world.api.take(PODS, NS, "web-2")
    pod["metadata"] |= change
    world.api.put(PODS, pod)
    jobs.restore(item)
    assert restored(world)["reason"] == reason
    assert list((root / ".torpor").iterdir()) == []


def test_restore_taken_up_after_a_restart(world):
    """One container is back with its mark, one without, one still waits."""
    jobs, item, roots = prepare_restore(world, containers=("app", "side", "last"))
    JobFolder(world.context.staging, "uid-re").begin()
    (roots[0] / ".torpor" / "restored").write_text("")
    world.node.status(500, name="redis-server")
    world.node.status(501, name="python3")
    jobs.restore(item)
    assert restored(world)["status"] == "True"
    assert [options.pid for options in world.engine.takeovers] == [502]
    assert (roots[1] / ".torpor" / "restored").exists()


def test_restore_after_too_many_lives(world):
    jobs, item, (root,) = prepare_restore(world)
    for _ in range(MOST_ATTEMPTS):
        JobFolder(world.context.staging, "uid-re").begin()
    jobs.restore(item)
    assert restored(world)["reason"] == "AgentRestarted"
    assert (root / ".torpor" / "give-up").exists()


def test_image_ids():
    assert is_same_image("sha256:1", "sha256:1")
    assert not is_same_image("sha256:1", "sha256:2")
    assert is_same_image("docker.io/redis@sha256:1", "mirror/redis@sha256:1")
    assert not is_same_image("docker.io/redis@sha256:1", "docker.io/redis@sha256:2")
    assert is_same_image("docker.io/redis@sha256:1", "sha256:9")  # nothing to compare


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

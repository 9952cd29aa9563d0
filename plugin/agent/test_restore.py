# SPDX-License-Identifier: Apache-2.0
"""Restore jobs: a small API server, a node of files, a real store, a recorded engine."""

import threading
import time
from dataclasses import replace

import pytest

from torpor.engine.errors import Refused, Vanished
from torpor.plugin.agent.jobs import MOST_ATTEMPTS, Jobs
from torpor.plugin.agent.restore import is_same_image
from torpor.plugin.agent.staging import JobFolder
from torpor.plugin.api import codec
from torpor.plugin.api.conditions import condition
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS, RESTORES
from torpor.plugin.store.base import StoreFailed

NS = "ns"


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


class LatePages:
    """A store whose pages come when they are let go, or not at all."""

    def __init__(self, whole, error=None):
        self.whole, self.error = whole, error
        self.may_come, self.called_off = threading.Event(), False

    def get(self, *arguments, precedence, cancel, **options):
        def when_early(manifest):
            precedence.when_early(manifest)
            while not self.may_come.wait(0.01):
                try:
                    cancel.check()
                except Vanished:
                    self.called_off = True
                    raise
            if self.error:
                raise self.error

        order = replace(precedence, when_early=when_early)
        return self.whole.get(*arguments, precedence=order, cancel=cancel, **options)


def test_files_are_brought_while_pages_are_fetched(world):
    jobs, item, (root,) = prepare_restore(world)
    store = world.context.stores["main"] = LatePages(world.context.stores["main"])
    job = threading.Thread(target=jobs.restore, args=(item,))
    job.start()
    end_s = time.monotonic() + 10
    while not (root / "data" / "volume-file").exists() and time.monotonic() < end_s:
        time.sleep(0.01)
    brought = (root / "data" / "volume-file").exists()
    taken = list(world.engine.takeovers)
    store.may_come.set()
    job.join()
    assert brought
    assert not taken
    assert restored(world)["status"] == "True"
    steps = world.conditions(RESTORES, "re")[0]["steps"]
    assert {"fetch", "wait", "files", "pages", "takeover"} == steps.keys()


def test_pages_that_do_not_come(world):
    """The files are there already; the container is told to give up, and nothing runs."""
    jobs, item, (root,) = prepare_restore(world)
    store = LatePages(world.context.stores["main"], StoreFailed("gone half-way"))
    world.context.stores["main"] = store
    store.may_come.set()
    jobs.restore(item)
    assert restored(world)["reason"] == "StoreFailed"
    assert (root / ".torpor" / "give-up").exists()
    assert world.engine.takeovers == []
    assert list(world.context.staging.iterdir()) == []


def test_pages_are_not_waited_for_in_vain(world):
    """What is found out without them ends the fetch."""
    jobs, item, (root,) = prepare_restore(world, image_id="sha256:2")
    store = world.context.stores["main"] = LatePages(world.context.stores["main"])
    jobs.restore(item)
    assert store.called_off
    assert restored(world)["reason"] == "ImageMismatch"
    assert (root / ".torpor" / "give-up").exists()
    assert list(world.context.staging.iterdir()) == []


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

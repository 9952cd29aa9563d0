# SPDX-License-Identifier: Apache-2.0
"""Jobs of a former life of the agent: taken up again, given up, forgotten."""

from pathlib import Path

import pytest

from torpor.engine.errors import KernelError
from torpor.plugin.agent.jobs import MOST_ATTEMPTS
from torpor.plugin.agent.staging import JobFolder, forget, recover
from torpor.plugin.api import codec
from torpor.plugin.api.conditions import condition
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS

NS = "ns"


def in_progress(world):
    item = world.api.take(CHECKPOINTS, NS, "cp")
    item["status"]["conditions"].append(
        codec.encode(condition("Captured", False, "InProgress", "pod is captured"))
    )
    return world.api.put(CHECKPOINTS, item)


def test_a_job_of_a_former_life_is_done_again(world):
    _, jobs = world.take()
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
    _, jobs = world.take()
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
    _, jobs = world.take()
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
    _, jobs = world.take()
    item = in_progress(world)
    for _ in range(MOST_ATTEMPTS):
        JobFolder(world.context.staging, item["metadata"]["uid"]).begin()
        recover(world.context.staging)
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == "AgentRestarted"
    assert world.engine.calls == []


def test_pod_went_with_the_former_life(world):
    _, jobs = world.take()
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

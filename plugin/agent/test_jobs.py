# SPDX-License-Identifier: Apache-2.0
"""Which objects are work for this node, one job a pod, and data that goes with its object."""

import pytest

from torpor.plugin.api import codec
from torpor.plugin.api.conditions import condition
from torpor.plugin.k8s.kinds import CHECKPOINTS
from torpor.plugin.store.base import StoreFailed

NS = "ns"


class Unreachable:
    def delete(self, *_):
        raise StoreFailed("gone")


def test_one_job_a_pod(world):
    item, jobs = world.take()
    other = world.checkpoint("other")
    answers = []
    world.engine.before = lambda: answers.append(jobs.checkpoint(other))
    jobs.checkpoint(item)
    assert answers == [1.0]
    assert jobs.checkpoint(other) is None


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
    item, jobs = world.take()
    if "conditions" in status:
        status["conditions"] = [codec.encode(condition(*each)) for each in status["conditions"]]
    item["status"] |= status
    assert jobs.checkpoint(world.api.put(CHECKPOINTS, item)) is None
    assert world.engine.calls == []


def test_data_is_deleted_with_the_object(world):
    item, jobs = world.take()
    jobs.checkpoint(item)
    item = world.api.take(CHECKPOINTS, NS, "cp")
    item["metadata"]["finalizers"] = ["torpor.dev/checkpoint-data"]
    item["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    item = world.api.put(CHECKPOINTS, item)
    store = world.context.stores["main"]
    world.context.stores["main"] = Unreachable()
    assert jobs.checkpoint(item) is not None
    assert world.conditions(CHECKPOINTS, "cp")[1]["DataDeleted"]["reason"] == "StoreUnreachable"
    world.context.stores["main"] = store
    assert jobs.checkpoint(world.api.take(CHECKPOINTS, NS, "cp")) is None
    assert world.conditions(CHECKPOINTS, "cp")[1]["DataDeleted"]["status"] == "True"
    assert store.list() == ()

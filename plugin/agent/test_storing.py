# SPDX-License-Identifier: Apache-2.0
"""What a store does to a checkpoint job: it fails, hangs, takes files while they are written."""

import threading
import time
from contextlib import contextmanager

import pytest

from torpor.engine.errors import Vanished
from torpor.plugin.k8s.kinds import CHECKPOINTS, PODS
from torpor.plugin.store.base import StoreFailed
from torpor.plugin.store.chunks import CHUNK_BYTES

NS = "ns"


class Failing:
    """An upload, or a store, of which one step fails, after a while if there is one."""

    def __init__(self, whole, step, error, wait=None):
        self.whole, self.step, self.error, self.wait = whole, step, error, wait

    def __getattr__(self, name):
        return self.fail if name == self.step else getattr(self.whole, name)

    def fail(self, *_, **__):
        if self.wait:
            self.wait.wait()
        raise self.error


class FailingStore(Failing):
    @contextmanager
    def upload(self, *arguments, **options):
        if self.step == "upload":
            self.fail()
        with self.whole.upload(*arguments, **options) as upload:
            yield Failing(upload, self.step, self.error, self.wait)


def fail(world, step, error, wait=None):
    world.context.stores["main"] = FailingStore(world.context.stores["main"], step, error, wait)


@pytest.mark.parametrize("after", ["Continue", "Stop"])
@pytest.mark.parametrize("step", ["upload", "grown", "commit", "verify"])
def test_store_fails(world, step, after):
    item, jobs = world.take(afterCheckpoint=after)
    fail(world, step, StoreFailed("no space is left", remedy="enlarge"))
    jobs.checkpoint(item)
    found = world.conditions(CHECKPOINTS, "cp")[1]
    assert (found["Captured"]["status"] == "True") is (step in ("commit", "verify"))
    assert (found["Stored"]["status"], found["Stored"]["reason"]) == ("False", "StoreFailed")
    assert "enlarge" in found["Stored"]["message"]
    assert not world.engine.ended


@pytest.mark.parametrize("step", ["upload", "commit", "verify"])
def test_store_hangs(world, step):
    item, jobs = world.take(afterCheckpoint="Stop", timeout="300ms")
    release = threading.Event()
    fail(world, step, StoreFailed("late"), release)
    jobs.checkpoint(item)
    release.set()
    part = "Captured" if step == "upload" else "Stored"
    assert world.conditions(CHECKPOINTS, "cp")[1][part]["reason"] == "Timeout"
    assert not world.engine.ended


def test_store_is_not_mounted(world):
    item, jobs = world.take()
    world.context.stores.clear()
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Captured"]["reason"] == "StoreNotFound"
    assert world.engine.calls == []


def test_pages_are_stored_while_they_are_written(world):
    """What is in the store has left the disk, and the status says how much was there in time."""
    world.engine.pages = bytes(range(256)) * (5 * CHUNK_BYTES // 512)
    item, jobs = world.take(memory={"way": "PreCopy"}, afterCheckpoint="Stop", timeout="10s")
    left = []

    def controller():
        while world.conditions(CHECKPOINTS, "cp")[1].get("Stored", {}).get("status") != "True":
            pass
        left.extend(path.stat().st_blocks for path in world.context.staging.rglob("pages-1.img"))
        world.api.remove(PODS, NS, "web")

    thread = threading.Thread(target=controller)
    thread.start()
    jobs.checkpoint(item)
    thread.join()
    assert left
    assert not sum(left)
    status, found = world.conditions(CHECKPOINTS, "cp")
    assert f"{len(world.engine.pages)} were there before" in found["Stored"]["message"]
    assert {"store", "verify", "stopped until stored"} <= status["steps"].keys()
    (entry,) = (e for e in world.stored().manifest.files if e.path.endswith("pages-1.img"))
    assert entry.size_bytes == len(world.engine.pages)
    value = world.context.metrics.registry.get_sample_value
    assert value("torpor_agent_ahead_bytes_total") == len(world.engine.pages)
    assert value("torpor_agent_compression_ratio_count") == 1


def test_files_of_a_pod_that_stops_are_stored_while_they_are_read(world, monkeypatch):
    """They leave the disk while the dump goes on, and the store has them whole."""
    content = bytes(range(256)) * (5 * CHUNK_BYTES // 512)
    item, jobs = world.take(afterCheckpoint="Stop", timeout="10s")
    (world.node.root / "merged-100" / "data" / "volume-file").write_bytes(content)
    dump = world.engine.dump

    def watched(trees, *, while_frozen, commit, progress):
        def look():
            while_frozen()
            (data,) = world.context.staging.rglob("volumes/data/data")
            assert data.stat().st_size == len(content)
            until = time.monotonic() + 10
            while data.stat().st_blocks:
                assert time.monotonic() < until, "it waits for the end of the dump"
                time.sleep(0.01)
            world.api.remove(PODS, NS, "web")

        return dump(trees, while_frozen=look, commit=commit, progress=progress)

    monkeypatch.setattr(world.engine, "dump", watched)
    jobs.checkpoint(item)
    assert world.conditions(CHECKPOINTS, "cp")[1]["Stored"]["status"] == "True"
    (entry,) = (e for e in world.stored().manifest.files if e.path == "volumes/data/data")
    assert entry.size_bytes == len(content)


def test_a_dump_that_is_done_again_begins_its_files_anew(world):
    world.engine.pages = b"x" * (2 * CHUNK_BYTES + 5)
    item, jobs = world.take()
    world.engine.errors = [Vanished("a task went")]
    jobs.checkpoint(item)
    assert world.engine.calls.count("dump") == 2
    (entry,) = (e for e in world.stored().manifest.files if e.path.endswith("pages-1.img"))
    assert entry.size_bytes == len(world.engine.pages)

# SPDX-License-Identifier: Apache-2.0
"""Random address spaces: every byte and every area before and after, in all tasks."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.functional.describe import tree
from torpor.engine.options import After, Lazy, MemoryWay

pytestmark = [pytest.mark.functional, pytest.mark.root]
WINDOW, END = 0x1000000000, 0x1000000000 + 48 * 512 * 4096
PAGE, HUGE = 4096, 2 << 20
CASES = [("memory_random", seed) for seed in range(12)]
CASES += [("memory_large", seed) for seed in range(6)]


def content(root):
    """Task and page → its bytes' hash, None where it cannot be read."""
    found = {}
    for pid in tree(root):
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            found |= {(pid, at): _page(memory.fileno(), at) for at in _addresses(pid)}
    return found


def _addresses(pid):
    for start, end in re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) ", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE
    ):
        if int(start, 16) >= WINDOW and int(end, 16) <= END:
            yield from range(int(start, 16), int(end, 16), PAGE)


def _page(memory, at):
    with suppress(OSError):
        return hashlib.sha256(os.pread(memory, PAGE, at)).digest()
    return None


@pytest.mark.parametrize("seed", range(6))
def test_every_byte_of_what_comes_later(start, seed):
    live = start("memory_large", str(seed))
    live.await_ready()
    before, bytes_before = live.look(), content(live.pid)
    for images in ("first", "second"):
        live.dump(images)
        report = live.restore(images, lazy=Lazy.ON)
        assert report.lazy_bytes > HUGE
        early = content(live.pid)  # None for a page that only the task itself may wait for
        assert all(early[key] in (None, was) for key, was in bytes_before.items())
        live.settle_lazily()
        assert content(live.pid) == bytes_before
        live.same_as(before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize(("workload", "seed"), CASES)
def test_every_byte(start, workload, seed):
    live = start(workload, str(seed))
    live.await_ready()
    before, bytes_before = live.look(), content(live.pid)
    assert len(bytes_before) > 100
    for images in ("first", "second"):
        live.dump(images)
        live.restore(images)
        live.same_as(before)
        same_bytes(live, bytes_before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("seed", range(12, 18))
@pytest.mark.parametrize("way", [MemoryWay.FROZEN, MemoryWay.SNAPSHOT])
def test_every_byte_of_a_tree_that_runs_on(start, way, seed):
    live = start("memory_random", str(seed))
    live.await_ready()
    before, bytes_before = live.look(), content(live.pid)
    live.dump("images", After.CONTINUE, memory=way)
    assert live.report.memory_way is way
    live.same_as(before)
    same_bytes(live, bytes_before)
    live.end()
    live.restore("images")
    live.same_as(before)
    same_bytes(live, bytes_before)
    assert live.verdict() == "ok"


def same_bytes(live, before):
    after = content(live.pid)
    assert after.keys() == before.keys()
    assert not [(pid, hex(at)) for (pid, at), was in before.items() if after[pid, at] != was]

# SPDX-License-Identifier: Apache-2.0
"""The cache: whole entries or none, one builder at a time, old ones pruned."""

import os
import threading
import time

import pytest

from deploy.image import cache


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path))
    return tmp_path


def test_built_once_per_key():
    built = []

    def build(target):
        built.append(target)
        target.write_text("x")

    first = cache.entry("kind", {"a": 1}, build)
    assert cache.entry("kind", {"a": 1}, build) == first
    assert cache.entry("kind", {"a": 2}, build) != first
    assert len(built) == 2
    assert first.read_text() == "x"


def test_a_failed_build_leaves_no_entry(home):
    def fail(target):
        target.mkdir()
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        cache.entry("kind", {}, fail)
    assert not [path for path in home.iterdir() if path.name != "locks"]


def test_what_a_killed_build_left_is_replaced():
    partial = cache.entry_path("kind", {}).with_name(f"partial-{cache.entry_path('kind', {}).name}")
    partial.mkdir()
    (partial / "half").write_text("")
    made = cache.entry("kind", {}, lambda target: target.mkdir())
    assert not list(made.iterdir())
    assert not partial.exists()


def test_two_at_once_build_once():
    built = []

    def build(target):
        time.sleep(0.1)
        built.append(1)
        target.write_text("")

    threads = [threading.Thread(target=cache.entry, args=("kind", {}, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_prune_takes_what_is_least_recently_used(home):
    def build(target):
        target.write_bytes(b"x" * 8192)

    paths = [cache.entry("x", {"n": n}, build) for n in range(4)]
    other = cache.entry("y", {}, build)
    for age, path in enumerate(paths[:3]):
        os.utime(path, (1 + age, 1 + age))
    os.utime(other, (1, 1))
    cache.prune(["x"], 3 * 8192)
    assert [path.exists() for path in paths] == [False, True, True, True]
    cache.entry("x", {"n": 1}, build)  # asking for an entry keeps it
    cache.prune(["x"], 0)
    assert [path.exists() for path in paths] == [False, True, False, True]
    assert other.exists()
    assert len(list(home.glob("x-*"))) == 4  # two entries and their notes


def test_prune_takes_what_was_left_half_built(home):
    (home / "partial-x-1").mkdir()
    os.utime(home / "partial-x-1", (1, 1))
    (home / "partial-x-2").mkdir()
    cache.prune(["x"], 0)
    assert [path.name for path in home.glob("partial-*")] == ["partial-x-2"]

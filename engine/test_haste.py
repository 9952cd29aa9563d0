# SPDX-License-Identifier: Apache-2.0
"""Haste: only while tasks stand still."""

import gc
import os

import pytest

from torpor.engine.haste import FIRST, FIRST_NICE, OF_A_RESTORE, Haste, Processors, awake


def test_haste_comes_and_goes(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "setpriority", lambda *args: asked.append(args))
    monkeypatch.setattr(os, "getpriority", lambda *_: 3)
    haste = Haste()
    haste.end()
    assert asked == []
    haste.begin()
    assert not gc.isenabled()
    haste.end()
    haste.end()
    assert gc.isenabled()
    assert asked == [(os.PRIO_PROCESS, 0, FIRST_NICE), (os.PRIO_PROCESS, 0, 3)]


def test_haste_without_the_right(monkeypatch):
    def refused(_which, _who, value):
        if value == FIRST_NICE:
            raise PermissionError

    monkeypatch.setattr(os, "setpriority", refused)
    haste = Haste()
    haste.begin()
    haste.end()
    assert gc.isenabled()


def test_pressing_haste_may_be_eased_and_press_again(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_BATCH)
    monkeypatch.setattr(os, "sched_getparam", lambda _: "before")
    monkeypatch.setattr(os, "sched_setscheduler", lambda *args: asked.append(args))
    haste = Haste(pressing=True)
    haste.begin()
    assert asked == [(0, *FIRST)]
    haste.ease()
    haste.press()
    haste.press()
    haste.end()
    haste.press()
    assert asked == [(0, *FIRST), (0, os.SCHED_BATCH, "before")] * 2


def test_pressing_haste_without_the_right(monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    with Haste(pressing=True):
        pass
    assert gc.isenabled()


@pytest.fixture
def latency(tmp_path, monkeypatch):
    file = tmp_path / "latency"
    file.touch()
    monkeypatch.setattr("torpor.engine.haste.LATENCY", str(file))
    return file


def holders(file):
    links = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1])
    return sum(link == str(file) for link in links)


def test_processors_are_kept_awake_until_they_may_rest(latency):
    processors = Processors()
    processors.wake()
    processors.wake()
    assert latency.read_bytes() == bytes(4)
    assert holders(latency) == 1
    processors.rest()
    processors.rest()
    assert holders(latency) == 0


def test_processors_rest_after_haste_and_after_a_restore(latency):
    haste = Haste(pressing=True)
    with haste:
        assert holders(latency) == 1
        haste.ease()
        assert holders(latency) == 0
        haste.press()
    assert holders(latency) == 0
    with awake():
        assert holders(latency) == 1
        OF_A_RESTORE.rest()
        assert holders(latency) == 0
    assert holders(latency) == 0


def test_without_the_right_processors_stay_as_they_are(latency):
    latency.unlink()
    with awake():
        assert not latency.exists()

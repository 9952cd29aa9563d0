# SPDX-License-Identifier: Apache-2.0
"""Haste: only while tasks stand still."""

import gc
import os

from torpor.engine.haste import FIRST, FIRST_NICE, Haste


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

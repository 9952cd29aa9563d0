# SPDX-License-Identifier: Apache-2.0
"""Which tasks share tables, by a kcmp(2) that is made up."""

import pytest

from torpor.engine.dump import sharing
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Findings, Vanished


@pytest.fixture
def objects(monkeypatch):
    """Kind of kcmp → pid → the object that it has (a number, ordered as the kernel would)."""
    made = {}

    def kcmp(one, other, kind, *_):
        a, b = (made.get(kind, {}).get(pid, pid) for pid in (one, other))
        return 0 if a == b else 1 if a < b else 2

    monkeypatch.setattr(sharing, "kcmp", kcmp)
    return made


def test_nobody_shares(objects):
    assert sharing.find([30, 10, 20]) == {"files_of": {}, "fs_of": {}}
    assert sharing.find([30]) == {"files_of": {}, "fs_of": {}}


def test_the_first_of_each_group_has_it(objects):
    objects[sharing.KCMP_FILES] = {30: 7, 20: 7, 40: 5, 10: 5}
    objects[sharing.KCMP_FS] = {10: 1, 40: 1}
    found = sharing.find([30, 10, 20, 40, 50])
    assert found == {"files_of": {20: 30, 40: 10}, "fs_of": {40: 10}}


def test_one_memory_is_refused(objects):
    objects[sharing.KCMP_VM] = {10: 1, 20: 1}
    with pytest.raises(Findings, match="whole memory") as error:
        sharing.find([10, 20])
    assert error.value.items[0].subject == "pid 20"


def test_memory_that_is_shared_for_long(objects, monkeypatch):
    """A child of vfork has one of its own soon; a task that ends meanwhile is no refusal."""
    monkeypatch.setattr(sharing.vfork, "LONGEST_S", 0.01)
    monkeypatch.setattr(sharing, "GLANCE_S", 0.002)
    tasks = [
        StoppedTask(pid=pid, process=pid, ppid=1, tids=[pid], state="S") for pid in (10, 20, 30)
    ]
    assert sharing.spaces(tasks) == []
    objects[sharing.KCMP_VM] = {10: 1, 30: 1}
    (refused,) = sharing.spaces(tasks)
    assert (refused.subject, refused.cause) == ("pid 30", "that of pid 10")
    monkeypatch.setattr(sharing.time, "sleep", lambda _: objects[sharing.KCMP_VM].clear())
    assert sharing.spaces(tasks) == []


def test_what_cannot_be_compared_is_left_to_the_stop(monkeypatch):
    def kcmp(*_):
        raise Vanished("is gone")

    monkeypatch.setattr(sharing, "kcmp", kcmp)
    tasks = [StoppedTask(pid=pid, process=pid, ppid=1, tids=[pid], state="S") for pid in (1, 2)]
    assert sharing.spaces(tasks) == []

# SPDX-License-Identifier: Apache-2.0
"""Sessions, groups and zombies: who forks whom, when, and what cannot be made again."""

import pytest

from tests.fixtures.trees import task, tree, zombie
from torpor.engine.errors import Refused
from torpor.engine.restore import tree as shape


def pids(tasks):
    return [t.pid for t in tasks]


def test_children_in_the_session_of_their_parent():
    whole = tree(task(), task(43, 41), task(42, 41))
    plan = shape.fork_plan(whole, whole.root, 41)
    assert (pids(plan.early), plan.makes_session, pids(plan.late)) == ([], False, [42, 43])
    shape.check(whole)


def test_a_child_that_leads_a_session():
    whole = tree(task(), task(42, 41, sid=42, pgid=42), task(43, 42, sid=42, pgid=42))
    shape.check(whole)
    plan = shape.fork_plan(whole, whole.tasks[1], 41)
    assert (plan.makes_session, pids(plan.late)) == (True, [43])


def test_a_child_with_the_session_of_before_is_forked_early():
    whole = tree(
        task(), task(42, 41, sid=42, pgid=42), task(43, 42, sid=41), task(44, 42, sid=42, pgid=42)
    )
    shape.check(whole)
    plan = shape.fork_plan(whole, whole.tasks[1], 41)
    assert (pids(plan.early), plan.makes_session, pids(plan.late)) == ([43], True, [44])


def test_a_root_in_a_session_from_outside():
    whole = tree(task(sid=7, pgid=7), task(42, 41, sid=7, pgid=7))
    shape.check(whole)
    assert not shape.fork_plan(whole, whole.root, 7).makes_session


@pytest.mark.parametrize(
    "child",
    [
        task(42, 41, sid=99, pgid=99),
        task(42, 41, sid=43, pgid=43),
    ],
)
def test_a_session_of_a_task_that_is_gone(child):
    with pytest.raises(Refused, match="was made by a task that is not an ancestor") as error:
        shape.check(tree(task(), child, task(43, 41, sid=43, pgid=43)))
    assert error.value.subject == "task 42 (worker)"
    assert "setsid" in error.value.remedy


def test_a_group_of_another_session():
    with pytest.raises(Refused, match="process group belongs to another session"):
        shape.check(tree(task(), task(42, 41, sid=42, pgid=42), task(43, 41, pgid=42)))


def test_groups_whose_leader_has_ended():
    whole = tree(
        task(), task(42, 41, pgid=50), task(43, 41, pgid=50), task(44, 41, pgid=44),
        zombie(45, 41, pgid=60),
    )  # fmt: skip
    assert {g: pids(m) for g, m in shape.dead_group_leaders(whole).items()} == {50: [42, 43]}
    assert shape.dead_group_leaders(tree(task(sid=7, pgid=7))) == {}


def test_zombies_are_children_like_others():
    whole = tree(task(), zombie(42, 41), zombie(43, 41, sid=43, pgid=43))
    shape.check(whole)
    assert pids(shape.fork_plan(whole, whole.root, 41).late) == [42, 43]

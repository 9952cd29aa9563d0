# SPDX-License-Identifier: Apache-2.0
"""Sessions, groups and zombies: who forks whom, when, and what cannot be made again."""

import pytest

from tests.fixtures.trees import task, tree, zombie
from torpor.engine.errors import Refused
from torpor.engine.restore import tree as shape


def pids(tasks):
    return [t.pid for t in tasks]


def told(*tasks):
    """The steps as words: `41 -> 42`, `setsid 42`, `ghost 42 of 41`; `[41]` for an adoption."""
    words = []
    whole = tree(*tasks)
    shape.check(whole)
    for step in shape.births(whole):
        if isinstance(step, shape.Fork):
            by = f" for {step.task.ppid}" if step.adopted else ""
            shared = f" {'+'.join(step.shares)}" if step.shares else ""
            words.append(f"{step.maker} -> {step.task.pid}{by}{shared}")
        elif isinstance(step, shape.NewSession):
            words.append(f"setsid {step.pid}")
        else:
            words.append(f"ghost {step.pid} of {step.parent}")
    return words


def leader(pid, ppid, **more):
    return task(pid, ppid, **{"sid": pid, "pgid": pid} | more)


def test_children_in_the_session_of_their_parent():
    assert told(task(), task(43, 41), task(42, 41)) == ["41 -> 42", "41 -> 43"]


def test_a_child_that_leads_a_session():
    found = told(task(), leader(42, 41), task(43, 42, sid=42, pgid=42))
    assert found == ["41 -> 42", "setsid 42", "42 -> 43"]


def test_a_child_with_the_session_of_before_is_forked_early():
    found = told(task(), leader(42, 41), task(43, 42, sid=41), task(44, 42, sid=42, pgid=42))
    assert found == ["41 -> 42", "42 -> 43", "setsid 42", "42 -> 44"]


def test_a_session_that_two_generations_have_left():
    found = told(
        task(), leader(42, 41), leader(43, 42), leader(44, 43), task(45, 44, sid=42, pgid=42)
    )
    assert found == ["41 -> 42", "setsid 42", "42 -> 43", "43 -> 44", "44 -> 45", "setsid 44",
                     "setsid 43"]  # fmt: skip


def test_a_root_in_a_session_from_outside():
    assert told(task(sid=7, pgid=7), task(42, 41, sid=7, pgid=7)) == ["41 -> 42"]


def test_a_session_whose_leader_is_gone():
    found = told(task(), task(43, 41, sid=42, pgid=42), task(44, 41, sid=42, pgid=42))
    assert found == ["ghost 42 of 41", "42 -> 43 for 41", "42 -> 44 for 41"]


def test_orphans_at_two_subreapers_have_one_ghost_below_both():
    inner = task(42, 41)
    found = told(task(), inner, task(50, 41, sid=49, pgid=49), task(51, 42, sid=49, pgid=49))
    assert found == ["41 -> 42", "ghost 49 of 42", "49 -> 51 for 42", "49 -> 50 for 41"]


def test_a_subreaper_that_left_the_session_may_have_been_born_in_it():
    found = told(task(), leader(42, 41), task(51, 42, sid=49, pgid=49))
    assert found == ["ghost 49 of 41", "49 -> 42 for 41", "42 -> 51", "setsid 42"]


def test_a_session_whose_leader_waits_to_be_reaped():
    found = told(task(), zombie(42, 41, sid=42, pgid=42), task(43, 41, sid=42, pgid=42))
    assert found == ["41 -> 42", "setsid 42", "42 -> 43 for 41"]


def test_an_orphan_of_a_session_in_another_branch():
    found = told(
        task(), task(42, 41, sid=43, pgid=43), leader(43, 41), task(44, 42, sid=43, pgid=43)
    )
    assert found[:2] == ["41 -> 43", "setsid 43"]
    assert found[2:] == ["43 -> 42 for 41", "42 -> 44"]


def test_a_session_that_no_descendant_of_the_parent_has():
    with pytest.raises(Refused, match="was made by a task that is not an ancestor") as error:
        told(task(), task(42, 41), leader(43, 41), task(44, 42, sid=43, pgid=43))
    assert error.value.subject == "task 44 (worker)"
    assert "setsid" in error.value.remedy


def test_tables_of_parents_and_siblings():
    found = told(
        task(), task(42, 41, files_of=41), task(43, 41), task(44, 41, files_of=43, fs_of=43)
    )
    assert found == ["41 -> 42 files_of", "41 -> 43", "43 -> 44 for 41 files_of+fs_of"]


def test_tables_of_tasks_that_cannot_have_made_each_other():
    with pytest.raises(Refused, match="shares its descriptor table") as error:
        told(task(), task(42, 41), task(43, 41), task(44, 42), task(45, 43, files_of=44))
    assert error.value.cause == "task 44"
    assert error.value.subject == "task 45 (worker)"


def test_a_table_may_come_from_a_task_that_is_made_first():
    found = told(task(), task(42, 41), leader(43, 41), task(44, 42, files_of=43))
    assert found == ["41 -> 42", "42 -> 44", "44 -> 43 for 41 files_of", "setsid 43"]


def test_a_group_of_another_session():
    with pytest.raises(Refused, match="process group belongs to another session"):
        shape.check(tree(task(), task(42, 41, sid=42, pgid=42), task(43, 41, pgid=42)))


def test_groups_whose_leader_has_ended():
    whole = tree(
        task(), task(42, 41, pgid=50), task(43, 41, pgid=50), task(44, 41, pgid=44),
        zombie(45, 41, pgid=60),
    )  # fmt: skip
    found = {g: pids(m) for g, m in shape.dead_group_leaders(whole).items()}
    assert found == {50: [42, 43], 60: [45]}
    assert shape.dead_group_leaders(tree(task(sid=7, pgid=7))) == {}


def test_the_group_of_an_ended_session_comes_with_it():
    assert shape.dead_group_leaders(tree(task(), task(43, 41, sid=42, pgid=42))) == {}


def test_zombies_are_children_like_others():
    found = told(task(), zombie(42, 41), zombie(43, 41, sid=43, pgid=43))
    assert found == ["41 -> 42", "41 -> 43", "setsid 43"]


def test_a_parent_of_the_root_is_nobody_of_the_tree():
    """Images may say that the root descends from its own child."""
    found = told(task(41, 42), task(42, 41, sid=77, pgid=77), task(43, 42, sid=77, pgid=77))
    assert found == ["ghost 77 of 41", "77 -> 42 for 41", "42 -> 43"]

# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass

import pytest

from torpor.engine.errors import Bug, KernelError
from torpor.engine.program.ops import Program
from torpor.engine.restore.batch import Batch


@dataclass
class Piece:
    """In place of `arena.Running`: tells when it was started and ended, and fails if it is to."""

    name: str
    told: list
    fails: bool = False
    under_way: bool = False

    def start(self):
        self.told.append(f"start {self.name}")
        self.under_way = True

    def finish(self):
        if not self.under_way:
            return
        self.under_way = False
        self.told.append(f"end {self.name}")
        if self.fails:
            raise KernelError("failed", errno=1, subject=self.name)


@dataclass
class Task:
    """A task and its arena."""

    pid: int
    told: list
    fails: tuple = ()

    @property
    def arena(self):
        return self

    def pieces(self, tid, program, subject):
        del tid, subject
        yield Piece(program.name, self.told, program.name in self.fails)


def test_tasks_run_beside_each_other_threads_of_one_do_not():
    told = []
    one, other = Task(1, told), Task(2, told)
    with Batch() as batch:
        batch.start(one, 1, Program("1a"), "")
        batch.start(other, 2, Program("2a"), "")
        batch.start(one, 10, Program("1b"), "")
    assert told[:4] == ["start 1a", "start 2a", "end 1a", "start 1b"]
    assert sorted(told[4:]) == ["end 1b", "end 2a"]


def test_an_error_comes_when_none_runs_any_more():
    told = []
    with pytest.raises(KernelError, match="failed"), Batch() as batch:  # noqa: PT012
        for pid in range(3):
            batch.start(Task(pid, told, fails=("1",)), pid, Program(str(pid)), "")
    assert sorted(told[3:]) == ["end 0", "end 1", "end 2"]


def test_the_error_of_who_starts_them_wins():
    told = []
    with pytest.raises(Bug, match="mine"), Batch() as batch:  # noqa: PT012
        batch.start(Task(1, told, fails=("a",)), 1, Program("a"), "")
        raise Bug("mine")
    assert told == ["start a", "end a"]

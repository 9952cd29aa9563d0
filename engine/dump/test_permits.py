# SPDX-License-Identifier: Apache-2.0
"""Which filters are known of whom, before the stop and under it; what that lets us do."""

import pytest

from torpor.engine.dump import injected, permits
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.dump.permits import Permits
from torpor.engine.errors import Denied, Timeout, Vanished
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.kernel.verdict import INSTRUCTION, AskedCall, Verdict

CLONE, PRCTL = syscall_number("clone"), syscall_number("prctl")
FORK = (AskedCall(CLONE, (0x2400,)),)
ROOT, OTHER = 10, 20


def forbidding(number, action=0x80000000):
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, action), (6, 0, 0, 0x7FFF0000)]
    return b"".join(INSTRUCTION.pack(*one) for one in code), 0


NO_FORK, NO_PRCTL, LOOSE = forbidding(CLONE), forbidding(PRCTL, 0x50001), forbidding(999)


class Tree:
    """Threads by process, with their filters; the helper that reads them."""

    def __init__(self, monkeypatch, **processes):
        self.threads = {int(pid[1:]): dict(threads) for pid, threads in processes.items()}
        self.reads = []
        monkeypatch.setattr(permits, "list_tasks", lambda root: self.tasks())
        monkeypatch.setattr(permits.proc, "read_text", self.text)
        monkeypatch.setattr(
            permits.proc, "read_many", lambda wanted: [self.text(*one).encode() for one in wanted]
        )

    def tasks(self):
        return [
            StoppedTask(pid=pid, process=pid, ppid=1, tids=sorted(threads), state="S")
            for pid, threads in self.threads.items()
        ]

    def filters(self, tid):
        return next(threads[tid] for threads in self.threads.values() if tid in threads)

    def text(self, tid, _):
        count = len(self.filters(tid))
        return f"Name:\tx\nSeccomp:\t{2 if count else 0}\nSeccomp_filters:\t{count}\n"

    def read(self, tid, number):
        self.reads.append((tid, number))
        return self.filters(tid)[number]

    def look(self, **more):
        found = Permits(suspended=False, **{"read": self.read} | more)
        found.look(ROOT)
        return found


def test_suspended_filters_do_not_matter(monkeypatch):
    tree = Tree(monkeypatch, p10={10: [NO_FORK]})
    found = Permits(suspended=True, read=tree.read)
    found.look(ROOT)
    found.verify(tree.tasks())
    assert tree.reads == []
    assert found.worst(ROOT, FORK) is Verdict.ALLOWED
    assert found.knows(ROOT)
    assert found.trace


def test_each_thread_has_its_own(monkeypatch):
    tree = Tree(monkeypatch, p10={10: [LOOSE], 11: [LOOSE, NO_FORK]}, p20={20: []})
    found = tree.look()
    assert tree.reads == [(10, 0), (11, 0), (11, 1)]
    assert found.against(ROOT, FORK, "the fork") == ""
    assert found.worst(ROOT, FORK) is Verdict.HARMS
    assert found.worst(OTHER, FORK) is Verdict.ALLOWED
    assert found.filters(11) == (NO_FORK, LOOSE)
    assert found.filters(20) == ()
    assert found.filters(99) is None
    assert not found.trace


@pytest.mark.parametrize(
    ("error", "why"),
    [(Denied("no", cause="confined"), "confined"), (Timeout("too late"), "too late")],
)
def test_what_cannot_be_read_is_not_known(monkeypatch, error, why):
    def fail(tid, number):
        raise error

    found = Tree(monkeypatch, p10={10: [LOOSE]}, p20={20: []}).look(read=fail)
    assert found.worst(ROOT, FORK) is None
    assert found.against(ROOT, FORK, "the fork") == (
        f"a seccomp filter of task 10 may forbid the fork ({why})"
    )
    assert found.filters(10) is None
    assert found.worst(OTHER, FORK) is Verdict.ALLOWED
    assert not found.knows(77)


def test_nobody_reads(monkeypatch):
    found = Tree(monkeypatch, p10={10: [LOOSE]}).look(read=None)
    assert "CAP_SYS_ADMIN" in found.against(ROOT, FORK, "the fork")


def test_a_thread_that_went_is_passed_over(monkeypatch):
    tree = Tree(monkeypatch, p10={10: [LOOSE], 11: [LOOSE]})

    def read(tid, number):
        if tid == 11:
            del tree.threads[ROOT][11]
            raise Vanished("gone")
        return tree.read(tid, number)

    found = tree.look(read=read)
    found.verify(tree.tasks())
    assert found.knows(ROOT)


def test_a_young_thread_has_those_of_all_others(monkeypatch):
    tree = Tree(monkeypatch, p10={10: [NO_PRCTL], 11: [NO_PRCTL]})
    found = tree.look()
    tree.threads[ROOT][12] = [NO_PRCTL]
    found.verify(tree.tasks())
    assert found.filters(12) == (NO_PRCTL,)


@pytest.mark.parametrize(
    ("begin", "then"),
    [
        ({10: []}, {10: [LOOSE]}),
        ({10: [LOOSE]}, {10: [LOOSE, NO_FORK]}),
        ({10: [LOOSE], 11: [LOOSE]}, {10: [LOOSE], 12: [LOOSE, NO_FORK]}),
        ({10: [LOOSE], 11: [NO_FORK]}, {10: [LOOSE], 11: [NO_FORK], 12: [LOOSE]}),
        ({10: [LOOSE], 11: [NO_FORK]}, {10: [NO_FORK]}),
    ],
    ids=["first", "another", "by a young one", "young, whose?", "execve of a thread"],
)
def test_filters_that_came_meanwhile(monkeypatch, begin, then):
    tree = Tree(monkeypatch, p10=begin)
    found = tree.look()
    found.verify(tree.tasks())
    tree.threads[ROOT] = then
    with pytest.raises(Vanished, match="just now"):
        found.verify(tree.tasks())


def test_a_filter_that_comes_while_they_are_read(monkeypatch):
    tree = Tree(monkeypatch, p10={10: [LOOSE]})
    added = []

    def read(tid, number):
        if not added:
            added.append(tree.threads[ROOT][10].append(NO_FORK))
        return tree.read(tid, number)

    found = tree.look(read=read)
    assert found.filters(10) == (NO_FORK, LOOSE)


def test_a_task_that_came_meanwhile_is_not_known(monkeypatch):
    tree = Tree(monkeypatch, p10={10: [LOOSE]})
    found = tree.look()
    tree.threads[OTHER] = {20: [LOOSE]}
    found.verify(tree.tasks())
    assert found.worst(OTHER, FORK) is None


def test_calls_as_filters_see_them():
    (clone, *_), (*_, end) = injected.of_fork()[1:], injected.of_fork()
    assert clone == AskedCall(CLONE, (0x2400, None, 0, 0, 0))
    assert end == AskedCall(syscall_number("exit_group"), (0, *[None] * 5))
    names = {one.number for one in injected.needed()}
    assert {syscall_number(name) for name in injected.MUST_ANSWER} <= names
    assert set(injected.needed()) <= set(injected.questions())

# SPDX-License-Identifier: Apache-2.0
"""A capture with the texts of a recorded task becomes the tree of an image."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.trees import TEMPLATE
from torpor.engine.capture import TaskCapture, ThreadCapture
from torpor.engine.dump.assemble import assemble
from torpor.engine.dump.capture import Captured
from torpor.engine.dump.freeze import StoppedTask, list_tasks
from torpor.engine.errors import Findings, Refused, Vanished
from torpor.engine.memory.areas import Area, Backing

FIXTURES = Path(__file__).resolve().parents[2] / "tests/fixtures/proc"
PID = 25402
VVAR = Area(start=0x7FFD00000000, end=0x7FFD00004000, prot=1, backing=Backing.VVAR)


def text(name):
    return (FIXTURES / f"{name}-6.18-x86_64.txt").read_text()


def thread(tid=PID, **more):
    values = {
        "tid": tid, "comm": b"fix ) ture", "status": text("status"), "regs": bytes(216),
        "xstate": TEMPLATE, "sigmask": 1, "pending": (), "rseq": (0, 0, 0, 0), "robust": (0, 24),
        "altstack": bytes(8) + b"\2" + bytes(15), "tid_address": 5, "pdeathsig": 0, "policy": 0,
        "priority": 0, "nice": 0, "affinity": b"\xff" * 8, "ioprio": 0, "timerslack_ns": 50_000,
        "settings": {"securebits": 4, "tsc": 2},
    }  # fmt: skip
    return ThreadCapture(**(values | more))


def captured(areas=(), state="S", ppid=1, **more):
    texts = {name: text(name) for name in ("stat", "status", "limits")} | {
        "timers": "", "oom_score_adj": "-5\n", "loginuid": "4294967295",
        "personality": "00040000\n", "comm": "fix ) ture\n", "coredump_filter": "00000033\n",
    }  # fmt: skip
    values = {
        "pid": PID, "ns_pid": 7, "texts": texts, "threads": (thread(),),
        "links": {"exe": "/bin/x", "cwd": "/srv", "root": "/"},
        "itimers": (bytes(32),) * 3, "brk": 0x5000, "auxv": bytes(16),
        "settings": {"dumpable": 2, "thp_disable": 3, "subreaper": 1, "mdwe": 1},
    } | more  # fmt: skip
    return Captured(
        task=StoppedTask(pid=PID, process=PID, ppid=ppid, tids=[PID], state=state),
        capture=TaskCapture(**values), vmas=(), areas=areas, refused=(), segments={},
    )  # fmt: skip


def test_fields():
    (task,) = assemble([captured(state="T")], {}, 0).tasks
    assert (task.pid, task.ppid, task.state, task.comm) == (7, 0, 3, b"fix ) ture")
    assert (task.personality, task.oom_score_adj, task.subreaper) == (0x40000, -5, True)
    assert (task.umask, task.loginuid, task.cwd) == (0o022, 4294967295, "/srv")
    assert len(task.rlimits) == 16
    assert (task.memory.brk, task.memory.thp_disabled) == (0x5000, True)
    (leader,) = task.threads
    assert leader.creds.securebits == 4
    assert (leader.settings, task.settings) == ({"tsc": 2}, {"mdwe": 1})
    assert (task.memory.dumpable, task.memory.thp_flags, task.coredump_filter) == (2, 2, 0x33)
    assert leader.altstack.flags == 2
    assert leader.scheduling.affinity is None


def test_narrow_affinity_is_kept(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    one = captured(threads=(thread(affinity=b"\1" + bytes(7)),))
    assert assemble([one], {}, 0).root.threads[0].scheduling.affinity == b"\1" + bytes(7)


def test_filters_of_the_runtime_are_left_to_it():
    one = captured(
        threads=(thread(seccomp=((b"newest00", 0), (b"middle00", 1), (b"runtime0", 0))),)
    )
    assert [f.program for f in assemble([one], {}, 1).root.threads[0].seccomp] == [
        b"newest00", b"middle00",
    ]  # fmt: skip
    assert assemble([one], {}, 3).root.threads[0].seccomp == ()


def test_all_refusals_are_told():
    one = captured(areas=(VVAR,), links={"exe": "/x (deleted)", "cwd": "/", "root": "/"})
    with pytest.raises(Findings) as error:
        assemble([replace_refused(one)], {}, 0)
    assert len(error.value.items) == 2
    assert "(and 1 more)" in error.value.what


def replace_refused(one):
    one.refused = (Refused("an area", remedy="none"),)
    return one


def test_a_zombie_has_only_its_end():
    one = captured()
    one.capture = replace(one.capture, threads=())
    (task,) = assemble([one], {}, 0).tasks
    assert task.zombie
    assert (task.threads, task.memory) == ((), None)


def test_a_main_thread_that_has_ended():
    """What the process is known by comes from it, and the rest from a thread that lives."""
    stat = text("stat").rpartition(")")[2].split()
    stat[0], stat[35], stat[49] = "Z", "10", str(7 << 8)
    main = {
        "stat": f"41 (has ended) {' '.join(stat)}", "comm": "has ended\n",
        "status": re.sub("Uid:.*", "Uid:\t5\t5\t5\t5", text("status")),
    }  # fmt: skip
    (task,) = assemble([captured(ended=main)], {}, 0).tasks
    assert (task.comm, task.exit_code, task.exit_signal) == (b"has ended", 7 << 8, 10)
    assert task.ended.creds.uids == (5, 5, 5, 5)
    assert not task.zombie
    assert task.memory is not None
    (task,) = assemble([captured()], {}, 0).tasks
    assert (task.ended, task.exit_code) == (None, 0)


def test_lists_of_tasks():
    with pytest.raises(Refused, match="pid 1"):
        list_tasks(1)
    with pytest.raises(Vanished):
        list_tasks(1 << 22)

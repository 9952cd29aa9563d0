# SPDX-License-Identifier: Apache-2.0
"""Programs of a task's own state: what they hold, and in which order."""

import struct
from dataclasses import replace

from tests.fixtures.trees import ROOT, USER, memory, task, thread
from torpor.engine.program.ops import Expect
from torpor.engine.restore import build
from torpor.engine.tasks.attributes import Scheduling
from torpor.engine.tasks.seccomp import Filter

PLAIN = Scheduling(policy=0, priority=0, nice=0)


def calls(program):
    return [op.call for op in program.ops]


def test_memory_markers_are_struct_prctl_mm_map():
    one = memory(auxv=b"a" * 16)
    op = build.memory_markers(one)
    raw = op.args[2]
    assert len(raw.content) == op.args[3] == 104
    words = struct.unpack_from("<11Q", raw.content)
    assert words[:2] == (one.start_code, one.end_code)
    assert words[4:7] == (one.start_brk, one.brk, one.start_stack)
    assert struct.unpack_from("<II", raw.content, 96) == (16, 0xFFFFFFFF)
    assert raw.pointers[0][0] == 88
    assert raw.pointers[0][1].content == one.auxv


def test_personality_comes_after_protection():
    """READ_IMPLIES_EXEC would make mprotect give more than it was asked."""
    text = memory().areas[0]
    program = build.task_program(task(personality=0x400000), memory(), {text.start}, 0)
    assert calls(program).index("mprotect") < calls(program).index("personality")
    (op,) = [op for op in program.ops if op.call == "personality"]
    assert (op.args, op.expect) == ((0x400000,), Expect.OK)
    (op,) = [
        o for o in build.task_program(task(), memory(), set(), 0).ops if o.call == "personality"
    ]
    assert op.expect is Expect.ANY


def test_a_root_of_its_own():
    program = build.task_program(task(root="/jail", cwd="/jail/srv"), memory(), set(), 0)
    assert calls(program)[-2:] == ["chdir", "chroot"]


def test_removed_directories():
    one = task(root="/jail", root_file=7, cwd="/srv", cwd_file=8)
    assert "chdir" not in calls(build.task_program(one, memory(), set(), 0))
    ops = build.removed_directories(one, {7: 100, 8: 101})
    assert [(op.call, op.args[0]) for op in ops if op.call == "fchdir"][:2] == [
        ("fchdir", 101), ("fchdir", 100),
    ]  # fmt: skip
    assert build.removed_directories(task(), {}) == []


def test_threads_need_no_right():
    program = build.thread_program(thread(rseq=(0x1000, 32, 7, 0), robust=(0x2000, 24)), PLAIN)
    assert calls(program) == ["set_robust_list", "rseq", "set_tid_address", "prctl"]
    assert program.ops[1].args == (0x1000, 32, 0, 7)


def test_what_a_change_of_user_clears_is_set_after_it():
    user = replace(USER, no_new_privs=True)
    leader = thread(creds=user, pdeathsig=15, seccomp=(Filter(program=bytes(8), flags=0),))
    one = task(threads=(leader, thread(42, creds=USER)), subreaper=True)
    program = build.last_program(one, leader, memory(dumpable=0), ROOT, lambda _: None)
    subjects = [op.subject for op in program.ops if op.subject != "credentials"]
    assert subjects == ["dumpable", "child subreaper", "pdeathsig", "seccomp filter 0"]
    assert program.ops[-1].call == "seccomp"
    other = build.last_program(one, one.threads[1], memory(), ROOT, lambda _: None)
    assert "dumpable" not in [op.subject for op in other.ops]


def test_a_filter_that_the_user_may_not_install_comes_before_the_change():
    leader = thread(creds=USER, seccomp=(Filter(program=bytes(8), flags=0),), seccomp_strict=True)
    program = build.last_program(task(threads=(leader,)), leader, memory(), ROOT, lambda _: None)
    names = [op.call for op in program.ops]
    assert names.index("seccomp") < names.index("setresuid")
    assert (program.ops[-1].subject, program.ops[-1].args[0]) == ("seccomp strict mode", 0)


def test_settings_are_given_while_all_rights_are_there():
    leader = thread(creds=USER, settings={"tsc": 2})
    one = task(threads=(leader,), settings={"mdwe": 1, "memory_merge": 1}, membarrier=16)
    program = build.last_program(one, leader, memory(), ROOT, lambda _: None)
    subjects = [op.subject for op in program.ops]
    assert subjects[:4] == ["tsc", "mdwe", "memory_merge", "membarrier registration"]
    assert [op.args[2] for op in program.ops if op.call == "madvise"] == [13, 13, 13]


def test_loginuid():
    program = build.loginuid_program(1234)
    assert calls(program) == ["openat", "write", "close"]
    assert program.ops[1].args[1].content == b"1234"

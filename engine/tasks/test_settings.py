# SPDX-License-Identifier: Apache-2.0
"""The table of small settings: asked with a slot each, told when unusual, set again."""

import struct

from torpor.engine.tasks import settings
from torpor.engine.tasks.settings import PROCESS, THREAD


def told(table, results, words=None):
    slots = struct.pack(f"<{len(table)}q", *(words or [0] * len(table)))
    return settings.answers(table, results, slots)


def at(table, name):
    return [one.name for one in table].index(name)


def test_each_question_has_a_slot_of_its_own():
    asked = settings.questions(THREAD, 0x1000)
    assert asked[at(THREAD, "tsc")] == ("prctl", (25, 0x1000 + 8 * at(THREAD, "tsc"), 0, 0, 0))
    assert asked[at(THREAD, "cpuid")] == ("arch_prctl", (0x1011, 0))


def test_usual_values_and_refused_questions_are_left_out():
    assert told(THREAD, [0, 0, 2, -1, 1], [0, 1, 0, 0, 0]) == {}


def test_answers_come_from_results_and_from_slots():
    found = told(THREAD, [16, 0, 1, 1, 0], [0, 2, 0, 0, 0])
    assert found == {"securebits": 16, "tsc": 2, "mce_kill": 1, "io_flusher": 1, "cpuid": 0}
    assert settings.kept(THREAD, found) == {k: v for k, v in found.items() if k != "securebits"}
    assert [op.describe() for op in settings.plan(THREAD, found)] == [
        "prctl(26, 2, 0, 0, 0)  # tsc",
        "prctl(33, 1, 1, 0, 0)  # mce_kill",
        "prctl(57, 1, 0, 0, 0)  # io_flusher",
        "arch_prctl(0x1012, 0)  # cpuid",
    ]


def test_no_cookie_and_no_keyring_is_the_usual():
    results = [1, 0, 0, 0, 0, -22, -126, -126]
    assert told(PROCESS, results) == {}
    assert settings.refusals({}, "task 41") == []


def test_keyrings_and_cookies_are_refused():
    words = [0] * len(PROCESS)
    words[at(PROCESS, "core_cookie")] = 77
    found = told(PROCESS, [1, 0, 0, 0, 0, 0, 123, -126], words)
    refused = settings.refusals(found, "task 41")
    assert [one.what for one in refused] == ["a core scheduling cookie", "a keyring of its own"]
    assert not settings.kept(PROCESS, found)


def test_registrations_are_made_one_by_one():
    ops = settings.plan_membarrier(1 << 4 | 1 << 6)
    assert [op.args[0] for op in ops] == [16, 64]


def test_what_this_machine_cannot_have_is_not_asked():
    def names(flags, capabilities):
        return [one.name for one in settings.thread_settings(flags, capabilities)]

    assert names({"fpu"}, 0) == ["securebits", "tsc", "mce_kill"]
    assert names({"cpuid_fault"}, 1 << 24) == [one.name for one in THREAD]

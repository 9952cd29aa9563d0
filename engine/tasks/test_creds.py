# SPDX-License-Identifier: Apache-2.0
"""From credentials to credentials: the calls, in an order in which each is still permitted."""

from dataclasses import replace

from hypothesis import given

from tests.fixtures import trees
from tests.fixtures.trees import ROOT, USER
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.program.ops import Expect
from torpor.engine.tasks import creds

STATUS = """\
Name:\tworker
Uid:\t1\t2\t3\t4
Gid:\t5\t6\t7\t8
Groups:\t9 10
CapInh:\t0000000000000400
CapPrm:\t0000000000000c00
CapEff:\t0000000000000800
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000400
NoNewPrivs:\t1
"""
NET = 1 << 10


def planned(wanted, current=ROOT):
    return [f"{op.call} {op.note}" for op in creds.plan(wanted, current)]


def test_collect():
    found = creds.collect(STATUS, 21)
    assert (found.uids, found.gids, found.groups) == ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10))
    assert (found.inheritable, found.permitted, found.effective) == (0x400, 0xC00, 0x800)
    assert (found.bounding, found.ambient) == ((1 << 41) - 1, 0x400)
    assert (found.securebits, found.no_new_privs) == (21, True)


@given(trees.creds)
def test_round_trip(state):
    entry = pb.creds_entry()
    creds.encode(state, entry)
    assert creds.decode(pb.creds_entry.FromString(entry.SerializeToString())) == state


@given(trees.creds)
def test_equal_needs_nothing(state):
    assert creds.plan(state, state) == []


def test_root_to_a_user_without_capabilities():
    assert planned(USER) == [
        "setgroups supplementary groups",
        "prctl keep capabilities while ids change",
        "setresgid group ids",
        "setresuid user ids",
        "prctl securebits",
        "capset capability sets",
    ]


def test_a_user_in_a_container_without_any_right():
    """Ids, groups and sets are there already: nothing may be asked."""
    assert planned(replace(USER, no_new_privs=True), USER) == ["prctl no_new_privs"]


def test_without_cap_setpcap_securebits_are_left_alone():
    few = replace(ROOT, permitted=0xC0, effective=0xC0)  # CAP_SETUID, CAP_SETGID
    assert planned(replace(USER, groups=()), few) == [
        "setresgid group ids", "setresuid user ids", "capset capability sets",
    ]  # fmt: skip


def test_bounding_goes_first():
    ops = creds.plan(replace(USER, bounding=ROOT.bounding & ~(1 << 21 | 1 << 40)), ROOT)
    assert [op.args[:2] for op in ops[:2]] == [(24, 21), (24, 40)]
    assert ops[-1].call == "capset"
    assert "capability 21" in ops[0].note
    assert all(op.remedy for op in ops)


def test_ambient_after_ids_and_before_the_last_capset():
    wanted = replace(USER, groups=(), permitted=NET, effective=NET, inheritable=NET, ambient=NET)
    assert planned(wanted) == [
        "prctl keep capabilities while ids change",
        "setresgid group ids",
        "setresuid user ids",
        "prctl ambient",
        "capset inheritable set",
        "prctl ambient set",
        "prctl securebits",
        "capset capability sets",
    ]


def test_securebits_alone():
    assert planned(replace(ROOT, securebits=0b10101)) == ["prctl securebits"]
    (op,) = creds.plan(replace(ROOT, securebits=0b10101), ROOT)
    assert op.args[:2] == (28, 0b10101)


def test_keeping_capabilities_needs_no_right():
    (op,) = creds.plan(replace(USER, securebits=1 << 4), USER)
    assert op.args[:2] == (8, 1)
    (op,) = creds.plan(USER, replace(USER, securebits=1 << 4))
    assert op.args[:2] == (8, 0)


def test_file_system_ids_are_asked_afterwards():
    wanted = replace(ROOT, uids=(0, 0, 0, 7), gids=(0, 0, 0, 8))
    ops = [op for op in creds.plan(wanted, ROOT) if op.call.startswith("setfs")]
    assert [(op.call, op.args, op.expect, op.want) for op in ops] == [
        ("setfsgid", (8,), Expect.ANY, 0),
        ("setfsgid", (0xFFFFFFFF,), Expect.EQUAL, 8),
        ("setfsuid", (7,), Expect.ANY, 0),
        ("setfsuid", (0xFFFFFFFF,), Expect.EQUAL, 7),
    ]


def test_sets_of_64_bits():
    wanted = replace(ROOT, effective=1 << 40 | 1, inheritable=2)
    (op,) = creds.plan(wanted, ROOT)
    head, sets = (arg.content for arg in op.args)
    assert head.hex() == "2205082000000000"
    words = [int.from_bytes(sets[i : i + 4], "little") for i in range(0, 24, 4)]
    assert words == [1, 0xFFFFFFFF, 2, 0x100, 0x1FF, 0]

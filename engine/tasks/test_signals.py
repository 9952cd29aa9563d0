# SPDX-License-Identifier: Apache-2.0
import struct
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import trees
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.tasks import signals
from torpor.engine.tasks.signals import Action, AltStack


@given(trees.actions)
def test_actions_round_trip(actions):
    core = pb.task_core_entry()
    signals.encode_actions(actions, core)
    assert len(core.sigactions) == 62
    assert signals.decode_actions(core) == actions


def test_actions_of_captured_structures():
    raw = struct.pack("<QQQQ", 0x401000, 0x14000000, 0x402000, 1 << 9)
    parsed = signals.parse_actions({10: raw})
    assert parsed == {10: Action(handler=0x401000, flags=0x14000000, restorer=0x402000, mask=512)}
    (op,) = signals.plan_actions(parsed, 0)
    assert op.args[0] == 10
    assert op.args[1].content == raw
    assert op.describe() == "rt_sigaction(10, <32 bytes>, 0, 8)  # signal 10: action"


def test_actions_that_are_to_be_the_default_again():
    ops = signals.plan_actions({}, 1 << 10 | 1 << 8)  # SIGSEGV; SIGKILL cannot be set
    assert [(op.args[0], op.args[1].content) for op in ops] == [(11, bytes(32))]


def is_trapped(info):
    number, _, code = struct.unpack_from("<iii", info)
    return number == 5 or (number in (4, 7, 8, 11, 31) and code > 0)


def test_faults_of_a_thread_are_queued_when_no_more_traps_come():
    fault = struct.pack("<iii", 11, 0, 1).ljust(128, b"\0")
    assert signals.plan_queue([fault], 41, 43) == []
    (op,) = signals.last_calls([fault], 41, 43)
    assert (op.call, op.args[:3], op.args[3].content) == ("rt_tgsigqueueinfo", (41, 43, 11), fault)
    assert len(signals.plan_queue([fault], 41, None)) == 1
    assert signals.last_calls([fault], 41, None) == []


def test_sigtrap_is_ignored_last():
    ignored = Action(handler=1, flags=0, restorer=0, mask=0)
    (op,) = signals.last_calls([], 41, 41, {5: ignored})
    assert (op.call, op.args[0]) == ("rt_sigaction", 5)
    assert signals.last_calls([], 41, 41, {5: replace(ignored, handler=0x1000)}) == []


@given(st.lists(trees.siginfos, max_size=5))
def test_queues(pending):
    queue = pb.signal_queue_entry()
    signals.encode_queue(pending, queue)
    assert signals.decode_queue(queue) == tuple(pending)
    ops = signals.plan_queue(pending, 41, 43)
    last = signals.last_calls(pending, 41, 43)
    calls = [(op.call, op.args[:2]) for op in (*ops, *last)]
    assert calls == [("rt_tgsigqueueinfo", (41, 43))] * len(pending)
    traps = [info for info in pending if is_trapped(info)]
    assert [op.args[3].content for op in last] == traps
    assert [op.args[3].content for op in ops] == [i for i in pending if i not in traps]


def test_queue_of_the_task():
    info = struct.pack("<iii", 10, 0, -1)
    (op,) = signals.plan_queue((info,), 41, None)
    assert op.describe() == (
        "rt_sigqueueinfo(41, 10, <128 bytes>)  # signal 10: pending for the task"
    )


def test_altstack():
    raw = struct.pack("<QixxxxQ", 0x5000, 1, 8192)
    stack = signals.parse_altstack(raw)
    assert stack == AltStack(pointer=0x5000, size_bytes=8192, flags=1)
    (op,) = signals.plan_altstack(stack)
    assert op.args[0].content == struct.pack("<QixxxxQ", 0x5000, 0, 8192)
    assert signals.plan_altstack(AltStack(pointer=0, size_bytes=0, flags=2)) == []

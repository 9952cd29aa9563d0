# SPDX-License-Identifier: Apache-2.0
"""The bytes of a program against native/include/torpor/program.h."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.engine.errors import Bug
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.program import encode
from torpor.engine.program.ops import Data, Expect, Op, Program, Slot, move, place

HEADER_FILE = Path(__file__).resolve().parents[2] / "native/include/torpor/program.h"
BASE = 0x10001000


def asserted():
    """Every number that the header asserts or defines."""
    text = HEADER_FILE.read_text()
    found = {
        f"sizeof {name}": int(number)
        for name, number in re.findall(r"sizeof\(struct (\w+)\) == (\d+)", text)
    }
    for struct_name, field, number in re.findall(r"offsetof\(struct (\w+), (\w+)\) == (\d+)", text):
        found[f"{struct_name}.{field}"] = int(number)
    for name, value in re.findall(r"#define (OP_\w+) (0x[0-9a-f]+|\d+)u?", text):
        found[name] = int(value, 0)
    return found


def test_numbers_are_those_of_the_c_side():
    said = asserted()
    assert said["sizeof op"] == encode.OP.size == 64
    assert said["sizeof program"] == encode.HEADER.size == 40
    assert said["op.args"] == struct.calcsize("<II")
    assert said["op.want"] == struct.calcsize("<II6Q")
    assert said["program.failed_index"] == struct.calcsize("<QQQ")
    assert {"@load32": said["OP_LOAD32"], "@store64": said["OP_STORE64"]} == encode.PSEUDO
    assert [e.value for e in (Expect.OK, Expect.ANY, Expect.EQUAL)] == [
        said[f"OP_EXPECT_{name}"] for name in ("OK", "ANY", "EQUAL")
    ]
    assert (said["OP_SLOT_ARGS"], said["OP_EXPECT_SHIFT"], said["OP_YIELD_SHIFT"]) == (0x3F, 8, 16)


def ops_of(encoded):
    at, count, slots, index, result = encode.HEADER.unpack_from(encoded.content)
    assert (index, result) == (encode.NOT_RUN, 0)
    assert slots == encoded.base + 40
    assert at % 64 == 0
    return [
        encode.OP.unpack_from(encoded.content, at - encoded.base + 64 * i) for i in range(count)
    ]


def test_arguments_slots_and_expectations():
    made = Slot("made")
    program = Program(
        "p",
        [
            Op(call="openat", args=(-100, Data.path("/x"), 0, 0), yields=made),
            Op(call="dup3", args=(made, 7, 0), expect=Expect.EQUAL, want=7),
            Op(call="close", args=(made,), expect=Expect.ANY),
        ],
    )
    encoded = encode.encode(program, BASE)
    opened, dup, close = ops_of(encoded)
    assert opened[0] == syscall_number("openat")
    assert opened[1] == 1 << 16
    assert opened[2] == (1 << 64) - 100
    path = opened[3] - BASE
    assert encoded.content[path : path + 3] == b"/x\0"
    assert dup[1] == 2 << 8 | 1
    assert (dup[2], dup[3], dup[8]) == (0, 7, 7)
    assert close[1] == 1 << 8 | 1
    assert encode.encoded_size(program) == len(encoded.content)


def test_data_is_placed_once_aligned_and_pointed_to():
    inner = Data(b"inner")
    outer = Data(bytes(24), 16, ((8, inner), (16, inner)))
    program = Program(
        "p", [Op(call="write", args=(1, outer, inner)), Op(call="read", args=(0, outer))]
    )
    encoded = encode.encode(program, BASE)
    first, second = ops_of(encoded)
    assert first[3] == second[3]
    assert first[3] % 16 == 0
    assert first[4] % 8 == 0
    at = first[3] - BASE
    assert struct.unpack_from("<QQ", encoded.content, at + 8) == (first[4], first[4])


def test_equal_data_objects_are_different_rooms():
    one, two = Data.room(8), Data.room(8)
    (op,) = ops_of(encode.encode(Program("p", [Op(call="pipe2", args=(one, two))]), BASE))
    assert op[2] != op[3]


def test_load32_takes_an_offset():
    room = Data.room(8)
    ops = [Op(call="pipe2", args=(room, 0)), Op(call="@load32", args=(room, 4), yields=Slot("w"))]
    pipe, load = ops_of(encode.encode(Program("p", ops), BASE))
    assert load[0] == 0xF0000001
    assert (load[2], load[3]) == (pipe[2] + 4, 0)


def test_pieces_go_on_with_the_slots_of_earlier_ones():
    program = Program("p", [Op(call="close", args=(Slot("b"),)), Op(call="dup", yields=Slot("c"))])
    encoded = encode.encode(program, BASE, ("a", "b"))
    close, dup = ops_of(encoded)
    assert (close[2], dup[1] >> 16) == (1, 3)
    with pytest.raises(Bug, match="slot b is used before it is set"):
        encode.encode(program, BASE)


def test_a_place_for_a_new_descriptor():
    ops = place(Op(call="eventfd2", args=(0, 0), subject="fd 7", remedy="none"), 513)
    assert [op.describe() for op in ops] == [
        "eventfd2(0, 0) → new513  # fd 7",
        "dup3($new513, 513, 0)  # fd 7",
        "close($new513)  # fd 7",
    ]
    assert ops[0].remedy == "none"
    assert move(Slot("s"), 4)[0].want == 4


def failing(op):
    return encode.encode(Program("p", [Op(call="getpid"), op]), BASE)


def test_failure_names_object_operation_and_remedy():
    op = Op(call="openat", args=(-100, Data.path("/log"), 1, 0), subject="fd 7 -> /log",
            note="open for append", remedy="mount the volume")  # fmt: skip
    error = failing(op).failure(1, -2, "task 41")
    assert str(error) == (
        "task 41, fd 7 -> /log: openat(-100, '/log', 1, 0) failed: "
        "ENOENT (No such file or directory); remedy: mount the volume"
    )
    assert error.errno == 2


def test_failure_of_an_unexpected_result():
    op = Op(call="dup3", args=(3, 7, 0), expect=Expect.EQUAL, want=7)
    error = failing(op).failure(1, 8, "task 41")
    assert error.what == "dup3(3, 7, 0) gave 8 instead of 7"
    assert (error.subject, error.cause) == ("task 41", "unexpected result")
    assert "torpor plan" in error.remedy


def test_outcome():
    header = encode.HEADER.pack(0, 0, 0, 3, -13)
    assert encode.outcome(header + b"more") == (3, -13)
    assert encode.outcome(encode.HEADER.pack(0, 0, 0, -1, 0)) == (-1, 0)
    with pytest.raises(Bug, match="did not start"):
        encode.outcome(encode.HEADER.pack(0, 0, 0, encode.NOT_RUN, 0))


datas = st.builds(Data, st.binary(max_size=40), st.sampled_from([1, 4, 8, 64]))


@given(st.lists(st.tuples(datas, datas), max_size=20))
def test_nothing_overlaps(pairs):
    ops = [Op(call="write", args=pair) for pair in pairs]
    encoded = encode.encode(Program("p", ops), BASE)
    found = {}
    for (first, second), op in zip(pairs, ops_of(encoded), strict=True):
        found[id(first)], found[id(second)] = (op[2], first), (op[3], second)
    end = BASE + 40 + 64 * len(ops)
    for address, data in sorted(found.values(), key=lambda pair: (pair[0], len(pair[1].content))):
        assert address >= end
        assert address % data.align == 0
        at = address - BASE
        assert encoded.content[at : at + len(data.content)] == data.content
        end = address + len(data.content)

# SPDX-License-Identifier: Apache-2.0
"""Registers through CRIU's messages, on the same processor and on another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import trees
from tests.fixtures.trees import COMPONENTS, TEMPLATE
from torpor.engine.errors import BadImage
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.tasks import registers
from torpor.engine.tasks.registers import Component, Registers

PKRU = Component(number=9, offset=832, size_bytes=8)


def message(state, components=COMPONENTS):
    entry = pb.core_entry(mtype=pb.core_entry.X86_64).thread_info
    entry.clear_tid_addr = 0
    registers.encode(state, entry, components)
    return type(entry).FromString(entry.SerializeToString())


def decode(entry, raw=None, components=COMPONENTS, template=TEMPLATE):
    return registers.decode(entry, raw, components, template, "core-41.img")


@given(st.binary(min_size=216, max_size=216), st.binary(min_size=24, max_size=24))
def test_general_and_x87(general, control):
    area = bytearray(TEMPLATE)
    area[:24], area[512] = control, 3
    area[24:28] = b"\x80\x1f\0\0"
    state = Registers(general=general, xstate=bytes(area))
    assert decode(message(state)) == state


def test_without_our_copy():
    state = trees.registers()
    assert decode(message(state)) == state


def test_our_copy_has_what_messages_cannot_say():
    state = trees.registers()
    copy = state.xstate[:400] + b"software" + state.xstate[408:]
    assert decode(message(state), copy).xstate == copy


def test_a_copy_of_another_processor_is_left_alone():
    state = trees.registers()
    larger = (*COMPONENTS, PKRU)
    template = bytes(840)
    back = decode(message(state), state.xstate, larger, template)
    assert back.general == state.general
    assert back.xstate[576:832] == state.xstate[576:832]
    assert len(back.xstate) == 840


def test_components_are_placed_where_this_processor_has_them():
    state = trees.registers()
    other = (Component(number=2, offset=600, size_bytes=256),)
    back = decode(message(state), None, other, bytes(900))
    assert back.xstate[600:856] == state.xstate[576:832]
    assert back.xstate[512] == 7


def test_pkru_is_one_word():
    area = bytearray(840)
    area[512:514], area[832:836] = (0x0203).to_bytes(2, "little"), b"\x04\0\0\x55"
    state = Registers(general=bytes(216), xstate=bytes(area))
    entry = message(state, (*COMPONENTS, PKRU))
    assert list(entry.fpregs.xsave.pkru) == [0x55000004]
    assert decode(entry, None, (*COMPONENTS, PKRU), bytes(840)) == state


@pytest.mark.parametrize("raw", [None, trees.registers().xstate])
def test_a_processor_without_the_component(raw):
    with pytest.raises(BadImage, match="ymmh_space which this processor lacks") as error:
        decode(message(trees.registers()), raw, ())
    assert error.value.subject == "core-41.img"
    assert error.value.remedy


def test_a_component_that_is_not_in_use_is_no_obstacle():
    area = bytearray(TEMPLATE)
    area[512] = 3
    state = Registers(general=bytes(216), xstate=bytes(area))
    assert decode(message(state), None, ()).xstate[512] == 3


def test_32_bit_registers():
    entry = message(trees.registers())
    entry.gpregs.mode = 2
    with pytest.raises(BadImage, match="32-bit"):
        decode(entry)

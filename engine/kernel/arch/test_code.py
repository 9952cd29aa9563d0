# SPDX-License-Identifier: Apache-2.0
"""Gadgets: what may stand between `syscall` and `ret`, and where the `ret` looks."""

import pytest

from torpor.engine.kernel.arch.code import find_gadgets

SYSCALL = b"\x0f\x05"
XOR_EDX = b"\x31\xd2"
XOR_R8D = b"\x45\x31\xc0"
RET = b"\xc3"


def only(code):
    found = list(find_gadgets(code))
    assert len(found) <= 1
    return (found[0].offset, found[0].base, found[0].distance) if found else None


@pytest.mark.parametrize(
    ("middle", "base", "distance"),
    [
        (b"", "rsp", 0),
        (XOR_EDX + XOR_R8D, "rsp", 0),
        (b"\x90\x5b\x41\x5c\x5d", "rsp", 24),  # nop; pop rbx, r12, rbp
        (b"\x48\x83\xc4\x30\x5b", "rsp", 0x38),  # add $0x30,%rsp; pop %rbx
        (b"\x48\x81\xc4\x00\x01\x00\x00", "rsp", 0x100),
        (b"\xc9" + XOR_EDX, "rbp", 8),  # leave
        (b"\x48\x8d\x65\xf0\x5b\x41\x5e\x5d", "rbp", 8),  # lea -0x10(%rbp),%rsp; three pops
        (b"\x48\x89\xc7", "rsp", 0),  # mov %rax,%rdi
    ],
)
def test_accepted(middle, base, distance):
    assert only(b"\xcc\xcc" + SYSCALL + middle + RET) == (2, base, distance)


@pytest.mark.parametrize(
    "middle",
    [
        b"\x48\x3d\x01\xf0\xff\xff",  # cmp $-4095,%rax
        b"\x73\x01",  # jae
        b"\x31\xe4",  # xor %esp,%esp
        b"\x5c",  # pop %rsp
        b"\x89\x07",  # mov %eax,(%rdi)
        b"\x5d\xc9",  # pop %rbp; leave: rbp is no longer known
        b"\x31\xed\xc9",  # xor %ebp,%ebp; leave
        b"\x48\x89\xc4",  # mov %rax,%rsp
        b"\xe8\x00\x00\x00\x00",  # call
    ],
)
def test_rejected(middle):
    assert only(SYSCALL + middle + RET) is None


def test_cut_off_text_is_no_gadget():
    for length in range(len(SYSCALL + XOR_EDX + RET)):
        assert only((SYSCALL + XOR_EDX + RET)[:length]) is None


def test_text_without_end_is_given_up():
    assert only(SYSCALL + b"\x90" * 500 + RET) is None

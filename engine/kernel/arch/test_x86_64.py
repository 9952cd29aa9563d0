# SPDX-License-Identifier: Apache-2.0
"""Registers of interrupted calls, and signal frames as the kernel lays them out."""

import struct

import pytest

from torpor.engine.errors import Bug
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.arch.x86_64 import NR, Regs

WORD = (1 << 64) - 1
SYSCALL_AT = 0x401000
AFTER = SYSCALL_AT + 2


def stopped_in(name, error, **more):
    return Regs(orig_rax=NR[name], rax=-error & WORD, rip=AFTER, rdi=7, cs=0x33, **more)


def loads(number):
    """CODE_BEFORE bytes that end with mov $number,%eax; syscall."""
    code = b"\xb8" + struct.pack("<I", number) + arch.SYSCALL_INSN
    return code.rjust(arch.CODE_BEFORE, b"\x90")


@pytest.mark.parametrize("error", [512, 513, 514, 516])
def test_an_interrupted_call_is_issued_again(error):
    regs = stopped_in("futex", error)
    fresh = arch.restart_registers(regs)
    assert (fresh.rax, fresh.rip, fresh.orig_rax) == (NR["futex"], SYSCALL_AT, WORD)
    assert (fresh.rdi, fresh.cs) == (7, 0x33)
    assert regs.rip == AFTER


def test_a_sleep_that_was_told_the_rest_goes_on_with_it():
    told = arch.restart_registers(stopped_in("nanosleep", 516, rsi=0x5000))
    assert (told.rax, told.rdi) == (NR["nanosleep"], 0x5000)
    assert arch.restart_registers(stopped_in("nanosleep", 516)).rdi == 7
    relative = stopped_in("clock_nanosleep", 516, rdx=0x4000, r10=0x5000)
    assert arch.restart_registers(relative).rdx == 0x5000
    absolute = stopped_in("clock_nanosleep", 514, rsi=1, rdx=0x4000, r10=0x5000)
    assert arch.restart_registers(absolute).rdx == 0x4000
    interrupted = stopped_in("nanosleep", 516, rsi=0x5000)
    assert arch.restart_registers(interrupted, signal_pending=True).rdi == 7


@pytest.mark.parametrize(("error", "again"), [(512, True), (513, True), (514, False), (516, False)])
def test_with_a_signal_pending(error, again):
    fresh = arch.restart_registers(stopped_in("poll", error), signal_pending=True)
    assert (fresh.rip == SYSCALL_AT) == again
    assert fresh.rax == (NR["poll"] if again else -4 & WORD)


@pytest.mark.parametrize("rax", [0, 5, -4 & WORD, -2 & WORD])
def test_a_finished_call_keeps_its_result(rax):
    regs = Regs(orig_rax=NR["read"], rax=rax, rip=AFTER)
    fresh = arch.restart_registers(regs)
    assert (fresh.rax, fresh.rip, fresh.orig_rax) == (rax, AFTER, WORD)


def test_outside_of_calls_nothing_changes():
    regs = Regs(orig_rax=WORD, rax=-516 & WORD, rip=AFTER)
    assert arch.restart_registers(regs) == regs
    assert arch.resume_registers(regs) is regs


def test_a_restarted_call_is_known_by_its_code():
    regs = stopped_in("restart_syscall", 516)
    assert arch.restart_registers(regs, code=loads(NR["poll"])).rax == NR["poll"]
    unknown = arch.restart_registers(regs, code=loads(NR["read"]))
    assert (unknown.rax, unknown.rip) == (-4 & WORD, AFTER)
    assert arch.restart_registers(regs).rax == -4 & WORD


def test_a_restarted_call_is_known_by_what_we_kept():
    going = arch.resume_registers(stopped_in("futex", 516))
    assert going.rip == SYSCALL_AT
    assert going.rax & arch.CALL_MASK == NR["restart_syscall"]
    again = stopped_in("restart_syscall", 516)
    again.orig_rax = going.rax  # what the processor pushes at the next system call
    assert arch.restart_registers(again).rax == NR["futex"]
    assert arch.resume_registers(again).rax == going.rax


def test_about_to_restart():
    going = arch.resume_registers(stopped_in("clock_nanosleep", 516))
    code = b"\x90" * arch.CODE_BEFORE + arch.SYSCALL_INSN
    fresh = arch.restart_registers(going, code=code)
    assert (fresh.rax, fresh.rip) == (NR["clock_nanosleep"], SYSCALL_AT)
    by_kernel = Regs(orig_rax=NR["poll"], rax=NR["restart_syscall"], rip=SYSCALL_AT)
    assert arch.restart_registers(by_kernel, code=code).rax == NR["poll"]


def test_restarts_that_need_no_number_are_left_to_the_kernel():
    regs = stopped_in("read", 512)
    assert arch.resume_registers(regs) is regs


def test_regs_round_trip():
    raw = bytes(range(216))
    assert Regs.unpack(raw).pack() == raw
    assert Regs(rax=-1).pack()[80:88] == b"\xff" * 8
    with pytest.raises(TypeError):
        Regs(eax=1)


def xstate(size=832):
    area = bytearray(size)
    struct.pack_into("<Q", area, 464, 7)
    return bytes(area)


def test_frame_layout():
    regs = Regs(r8=8, rsp=0x7000, rip=0x1234, rax=99, rcx=5, eflags=0x246, cs=0x33, ss=0x2B)
    address = 0x10010
    frame = arch.sigframe(regs, 0xF0, (1, 2, 3), xstate(), address, return_address=0xABC)
    words = struct.unpack_from("<55Q", frame)
    assert words[0] == 0xABC
    assert words[1] == 7  # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
    assert words[3:6] == (1, 2, 3)
    assert words[6] == 8  # r8
    assert words[19] == 99  # rax
    assert words[21:24] == (0x7000, 0x1234, 0x246)  # rsp, rip, eflags
    assert words[24] == 0x33 | 0x2B << 48
    fpstate = words[29]
    assert fpstate % 64 == 0
    assert words[38] == 0xF0  # uc_sigmask
    at = fpstate - address
    magic, extended, features, size = struct.unpack_from("<IIQI", frame, at + 464)
    assert (magic, extended, features, size) == (0x46505853, 836, 7, 832)
    assert struct.unpack_from("<I", frame, at + 832)[0] == 0x46505845
    assert len(frame) == at + 836


def test_frame_without_altstack_leaves_it_alone():
    frame = arch.sigframe(Regs(), 0, None, b"", 0)
    assert struct.unpack_from("<i", frame, 32)[0] not in (0, 1, 2)


def test_frame_must_be_aligned():
    with pytest.raises(Bug):
        arch.sigframe(Regs(), 0, None, b"", 8)


def test_numbers():
    assert (NR["read"], NR["clone3"], NR["statmount"], NR["rt_sigreturn"]) == (0, 435, 457, 15)
    assert len(set(NR.values())) == len(NR)
    with pytest.raises(Bug):
        arch.syscall_number("no_such_call")

# SPDX-License-Identifier: Apache-2.0
"""What filters say: by the rules, and compared with what the kernel does to a child of ours."""

import ctypes
import os
import random
import signal
import struct

import pytest

from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.kernel.verdict import (
    ANY,
    ARCHITECTURE,
    INSTRUCTION,
    AskedCall,
    Verdict,
    of_filters,
    of_program,
    outcomes,
)

ALLOW, LOG, ERRNO, TRAP, KILL, TRACE = 0x7FFF0000, 0x7FFC0000, 0x50000, 0x30000, 0, 0x7FF00000
USER_NOTIF = 0x7FC00000
LD, JEQ, JGT, JGE, JSET, RET, RET_A, AND = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06, 0x16, 0x54
CLONE, GETPPID = 56, syscall_number("getppid")
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2


def program(*instructions):
    return b"".join(INSTRUCTION.pack(*(*one, 0, 0, 0)[:4]) for one in instructions)


def ret(value):
    return (RET, 0, 0, value)


def word(number):
    return (LD, 0, 0, number)


def by_argument(check, value, then=ALLOW, otherwise=KILL):
    """Of the lower half of the first argument."""
    return program(word(16), (check, 0, 1, value), ret(then), ret(otherwise))


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(ALLOW, 0), (LOG, 0), (ERRNO | 1, 1), (TRACE, 1), (TRAP, 2), (KILL, 2), (USER_NOTIF, 2),
     (0x80000000, 2), (0x12340000, 2)],
)  # fmt: skip
def test_actions(value, verdict):
    assert of_program(program(ret(value)), AskedCall(1)) == verdict


@pytest.mark.parametrize(
    ("code", "argument", "verdict"),
    [
        (by_argument(JEQ, 5), 5, 0),
        (by_argument(JEQ, 5), 6, 2),
        (by_argument(JEQ, 5), ANY, 2),
        (by_argument(JEQ, 5, otherwise=ERRNO | 1), ANY, 1),
        (by_argument(JEQ, 5, otherwise=LOG), ANY, 0),
        (by_argument(JGT, 5), 5, 2),
        (by_argument(JGE, 5), 5, 0),
        (by_argument(JSET, 6), 4, 0),
        (by_argument(JSET, 6), 9, 2),
        (by_argument(JEQ, 0), 1 << 32, 0),
        (program(word(20), (JEQ, 0, 1, 1), ret(ALLOW), ret(KILL)), 1 << 32, 0),
        (program(word(16), (AND, 0, 0, 0), (JEQ, 0, 1, 0), ret(ALLOW), ret(KILL)), ANY, 0),
        (program(word(16), (RET_A,)), ALLOW, 0),
        (program(word(16), (RET_A,)), ANY, 2),
        (program(word(0)), 0, 2),
        (program(word(62), ret(ALLOW)), 0, 0),
        (program((0xFF,), (RET_A,)), 0, 2),
    ],
)
def test_what_depends_on_an_argument(code, argument, verdict):
    assert of_program(code, AskedCall(CLONE, (argument,))) == verdict


def test_where_a_call_comes_from_is_not_known():
    code = program(word(8), (JEQ, 0, 1, 0x1000), ret(KILL), ret(ALLOW))
    assert of_program(code, AskedCall(CLONE)) is Verdict.HARMS


def test_architecture_and_number():
    code = program(word(4), (JEQ, 1, 0, ARCHITECTURE), ret(KILL), word(0), (JEQ, 0, 1, CLONE),
                   ret(ALLOW), ret(ERRNO | 38))  # fmt: skip
    assert of_program(code, AskedCall(CLONE)) is Verdict.ALLOWED
    assert of_program(code, AskedCall(435)) is Verdict.FAILS


def test_all_filters_must_agree():
    open_, closed = program(ret(ALLOW)), by_argument(JEQ, 5, otherwise=ERRNO | 1)
    assert of_filters((), AskedCall(CLONE)) is Verdict.ALLOWED
    assert of_filters((open_, closed), AskedCall(CLONE, (5,))) is Verdict.ALLOWED
    assert of_filters((open_, closed), AskedCall(CLONE, (6,))) is Verdict.FAILS
    assert of_filters((closed, program(ret(KILL))), AskedCall(CLONE, (6,))) is Verdict.HARMS


def test_a_maze_is_given_up():
    doubling = []
    for _ in range(200):
        doubling += [(LD, 0, 0, 16), (JSET, 0, 1, 1), (0x04, 0, 0, 1), (0x07,), (0x0C,)]
    states = outcomes(program((0x00, 0, 0, 0), *doubling, ret(ALLOW)), AskedCall(1, (ANY,)).words())
    assert states <= {ALLOW, ANY}


# ---- the kernel's own opinion -------------------------------------------------------------


def random_program(rng):
    """Valid for the kernel, and for one call only: all others are let through."""
    body = [(0x02, 0, 0, cell) for cell in range(2)]
    for _ in range(rng.randrange(2, 25)):
        k = rng.choice((0, 1, 5, 7, rng.getrandbits(32)))
        body.append(
            rng.choice(
                [
                    *[(LD, 0, 0, 4 * rng.choice((0, 1, 4, 5, 6, 7, 8)))] * 5,
                    (0x00, 0, 0, k), (0x01, 0, 0, k), (0x80,), (0x81,), (0x07,), (0x87,),
                    (0x02, 0, 0, rng.randrange(2)), (0x03, 0, 0, rng.randrange(2)),
                    (0x60, 0, 0, rng.randrange(2)), (0x61, 0, 0, rng.randrange(2)),
                    *[(op | by, 0, 0, k) for op in (0x04, 0x14, 0x24, 0x44, 0x54, 0xA4)
                      for by in (0, 8)],
                    (0x64, 0, 0, rng.randrange(32)), (0x74, 0, 0, rng.randrange(32)),
                    (0x34, 0, 0, k or 3), (0x84,),
                    *[("jump", op | by, k) for op in (JEQ, JGT, JGE, JSET) for by in (0, 8)] * 2,
                ]
            )
        )  # fmt: skip
    ends = [ret(rng.choice((ALLOW, ERRNO | rng.randrange(1, 60), LOG, TRACE))) for _ in range(3)]
    ends.append(rng.choice((ret(TRAP), ret(KILL), (RET_A,))))
    found = []
    size = len(body) + len(ends)
    for at, one in enumerate(body):
        if one[0] == "jump":
            far = size - at - 1
            found.append((one[1], rng.randrange(far), rng.randrange(far), one[2]))
        else:
            found.append(one)
    prologue = [word(0), (JEQ, 1, 0, GETPPID), ret(ALLOW)]
    return program(*prologue, *found, *ends)


def try_it(code, arguments):
    """What the call gives to a child with that filter; None when the child dies of it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            room = ctypes.create_string_buffer(code)
            fprog = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(room))
            done = libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            done = done or libc.prctl(SET_SECCOMP, FILTER, fprog, 0, 0)
            assert not done
            ctypes.set_errno(0)
            result = libc.syscall(GETPPID, *(ctypes.c_ulong(a) for a in arguments))
            os.write(writing, struct.pack("<i", ctypes.get_errno() if result < 0 else 0))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    answer = os.read(reading, 4)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGSYS
        return None
    assert os.WEXITSTATUS(status) == 0, "the kernel refused the filter"
    return struct.unpack("<i", answer)[0]


def agrees(value, result):
    if value is ANY:
        return True
    action = value & 0xFFFF0000
    if action in (ALLOW, LOG):
        return result == 0
    if action == ERRNO:
        return result == min(value & 0xFFFF, 4095)
    return result == 38 if action in (TRACE, USER_NOTIF) else result is None


@pytest.mark.parametrize("seed", range(120))
def test_the_kernel_says_the_same(seed):
    rng = random.Random(seed)
    code = random_program(rng)
    arguments = tuple(rng.choice((0, 1, 5, 1 << 32, rng.getrandbits(64))) for _ in range(3))
    result = try_it(code, arguments)
    exact = outcomes(code, AskedCall(GETPPID, arguments).words())
    assert len(exact) == 1, "nothing that is not known was loaded"
    assert agrees(next(iter(exact)), result), (exact, result)
    unknown = tuple(rng.choice((one, ANY)) for one in arguments)
    vague = outcomes(code, AskedCall(GETPPID, unknown).words())
    assert ANY in vague or exact <= vague

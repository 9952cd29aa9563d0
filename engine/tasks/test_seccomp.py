# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.tasks import seccomp
from torpor.engine.tasks.seccomp import Filter

OLD, NEW = Filter(program=bytes(8), flags=0), Filter(program=bytes(16), flags=2)


@pytest.mark.parametrize(
    ("mode", "count", "runtime", "may_read", "what"),
    [
        (0, 0, 0, False, None),
        (1, 0, 0, True, None),
        (1, 0, 0, False, "seccomp strict mode"),
        (2, 1, 1, False, None),
        (2, 2, 1, True, None),
        (2, 2, 1, False, "seccomp filters that the program set itself"),
    ],
)
def test_preflight(mode, count, runtime, may_read, what):
    status = f"Name:\tx\nSeccomp:\t{mode}\nSeccomp_filters:\t{count}\n"
    found = seccomp.preflight(status, runtime, may_read, "task 41")
    assert (found.what if found else None) == what
    assert found is None or found.remedy


def test_a_filter_with_a_listener():
    asks = Filter(program=struct.pack("<HBBI", 6, 0, 0, 0x7FC00001), flags=0)
    found = seccomp.refusal((OLD, asks), "task 41, thread 42")
    assert "asks another process" in found.what
    assert seccomp.refusal((OLD, NEW), "task 41") is None


def test_oldest_first():
    ops = seccomp.plan((NEW, OLD))
    assert [op.describe() for op in ops] == [
        "seccomp(1, 0, <16 bytes>)  # seccomp filter 0: 1 instructions",
        "seccomp(1, 2, <16 bytes>)  # seccomp filter 1: 2 instructions",
    ]
    prog = ops[1].args[2]
    assert struct.unpack_from("<H", prog.content) == (2,)
    assert prog.pointers[0][0] == 8
    assert prog.pointers[0][1].content == NEW.program
    assert seccomp.plan(()) == []

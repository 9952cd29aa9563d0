# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.inspect.calls import explain, explain_all
from torpor.engine.program.ops import Data, Op, Slot

ANY_DIRECTORY = (1 << 64) - 100


def action(number, handler):
    return Op(call="rt_sigaction", args=(number, Data(struct.pack("<4Q", handler, 0, 0, 0)), 0, 8))


@pytest.mark.parametrize(("op", "wanted"), [
    (Op(call="openat", args=(ANY_DIRECTORY, Data.path("/x"), 0o2000001, 0), yields=Slot("f"),
        subject="fd 3 -> /x"),
     "openat(AT_FDCWD, '/x', O_WRONLY|O_CLOEXEC) → $f  # fd 3 -> /x"),
    (Op(call="openat", args=(-100, Data.path("/x"), 0o102, 0o640)),
     "openat(AT_FDCWD, '/x', O_RDWR|O_CREAT, 0640)"),
    (Op(call="mmap", args=(0x1000, 8192, 5, 0x22, (1 << 64) - 1, 0), subject="1000-3000 r-xp heap",
        note="why"),
     "mmap(0x1000, 8192, r-x, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)  # r-xp heap: why"),
    (Op(call="dup3", args=(Slot("f"), 7, 0o2000000)), "dup3($f, 7, O_CLOEXEC)"),
    (Op(call="prctl", args=(38, 1, 0, 0, 0)), "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)"),
    (Op(call="socket", args=(1, 0o4002, 0)), "socket(AF_UNIX, SOCK_DGRAM|SOCK_NONBLOCK, 0)"),
    (Op(call="madvise", args=(0x1000, 4096, 99)), "madvise(0x1000, 4096, 99)"),
    (Op(call="lseek", args=(3, 5, 0)), "lseek(3, 5, SEEK_SET)"),
    (Op(call="umask", args=(0o22,)), "umask(0022)"),
    (Op(call="newcall", args=(1, 0x7F0000000000, Data.room(8))),
     "newcall(1, 0x7f0000000000, buffer[8])"),
    (action(2, 1), "rt_sigaction(SIGINT, SIG_IGN)"),
    (action(15, 0x401000), "rt_sigaction(SIGTERM, handler 0x401000)"),
])  # fmt: skip
def test_calls_are_printed_as_strace_would(op, wanted):
    assert explain(op) == wanted


def test_unknown_bits_are_not_lost():
    assert "0x4000000|" not in explain(Op(call="mmap", args=(0, 1, 1, 0x4000002, 0, 0)))
    assert "MAP_PRIVATE|0x4000000" in explain(Op(call="mmap", args=(0, 1, 1, 0x4000002, 0, 0)))


def test_default_actions_in_a_row_share_a_line():
    ops = [action(1, 0), action(2, 0x5000), *(action(n, 0) for n in (3, 4, 6, 7, 8))]
    assert explain_all(ops) == [
        "rt_sigaction(SIGNAL, SIG_DFL)  # 1 signal: SIGHUP",
        "rt_sigaction(SIGINT, handler 0x5000)",
        "rt_sigaction(SIGNAL, SIG_DFL)  # 5 signals: SIGQUIT, SIGILL, SIGABRT, ... SIGFPE",
    ]

# SPDX-License-Identifier: Apache-2.0
"""How operations are told."""

import pytest

from torpor.engine.program.ops import Data, Op, Slot


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (Op(call="getpid"), "getpid()"),
        (Op(call="close", args=(Slot("x"),)), "close($x)"),
        (Op(call="mmap", args=(0x400000, 4096, 3, 0x22, (1 << 64) - 1, 0)),
         "mmap(0x400000, 0x1000, 3, 34, -1, 0)"),
        (Op(call="chdir", args=(Data.path("/a b"),)), "chdir('/a b')"),
        (Op(call="chdir", args=(Data.path(b"/\xff\n"),)), "chdir('/\ufffd\\n')"),
        (Op(call="chdir", args=(Data.path("/\udcff"),)), "chdir('/\ufffd')"),
        (Op(call="read", args=(3, Data.room(16), 16)), "read(3, buffer[16], 16)"),
        (Op(call="write", args=(3, Data(b"xyz"), 3)), "write(3, <3 bytes>, 3)"),
        (Op(call="dup", args=(3,), yields=Slot("d"), subject="fd 3"), "dup(3) → d  # fd 3"),
        (Op(call="dup", args=(3,), note="kept"), "dup(3)  # kept"),
        (Op(call="dup", args=(3,), subject="fd 3", note="kept"), "dup(3)  # fd 3: kept"),
    ],
)  # fmt: skip
def test_describe(op, text):
    assert op.describe() == text


def test_paths_keep_their_bytes():
    assert Data.path("/\udcff").content == b"/\xff\0"
    assert Data.path(b"/\xff").content == b"/\xff\0"

# SPDX-License-Identifier: Apache-2.0
"""Random address spaces: every byte and every area before and after, in all tasks."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.functional.describe import tree

pytestmark = [pytest.mark.functional, pytest.mark.root]
WINDOW, END = 0x1000000000, 0x1000000000 + 40 * 64 * 4096
PAGE = 4096
SEEDS = range(12)


def content(root):
    """Task and page → its bytes' hash, None where it cannot be read."""
    return {(pid, at): _page(pid, at) for pid in tree(root) for at in _addresses(pid)}


def _addresses(pid):
    for start, end in re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) ", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE
    ):
        if int(start, 16) >= WINDOW and int(end, 16) <= END:
            yield from range(int(start, 16), int(end, 16), PAGE)


def _page(pid, at):
    with suppress(OSError), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return hashlib.sha256(os.pread(memory.fileno(), PAGE, at)).hexdigest()
    return None


@pytest.mark.parametrize("seed", SEEDS)
def test_every_byte(start, seed):
    live = start("memory_random", str(seed))
    live.await_ready()
    before, bytes_before = live.look(), content(live.pid)
    assert len(bytes_before) > 100
    for images in ("first", "second"):
        live.dump(images)
        live.restore(images)
        live.same_as(before)
        after = content(live.pid)
        assert after.keys() == bytes_before.keys()
        differ = [
            (pid, hex(at)) for (pid, at), was in bytes_before.items() if after[pid, at] != was
        ]
        assert not differ
    assert live.verdict() == "ok"

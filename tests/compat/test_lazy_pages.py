# SPDX-License-Identifier: Apache-2.0
"""Lazy restores of both makes with daemons of both makes, from images and from a lazy dump."""

import re

import pytest

from tests.compat.test_page_server import certificates, free_port
from tests.functional.conftest import start  # noqa: F401 (a fixture)
from tests.functional.lazyrun import Beside, Elsewhere
from tests.functional.test_incremental import OURS, criu
from tests.functional.test_lazy import await_gone
from tests.functional.test_lazy_migration import beside  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.root, pytest.mark.compat]
TRANSFERRED = re.compile(r"UFFD transferred pages: \((\d+)/")
SKIP = ("--network-lock", "skip")


@pytest.fixture
def makes(criu_root):
    return {"ours": list(OURS), "theirs": criu_root.criu()}


@pytest.mark.parametrize("images", ["ours", "theirs"])
@pytest.mark.parametrize(
    ("daemon", "restore"),
    [("ours", "ours"), ("ours", "theirs"), ("theirs", "ours"), ("theirs", "theirs")],
)
def test_memory_comes_from_images(makes, start, beside, images, daemon, restore):  # noqa: F811
    live = start("memory_lazy")
    live.await_ready()
    criu(live, "dump", "images", "-t", str(live.pid), *SKIP, program=makes[images])
    live.reap(live.pids)
    filling = beside(Beside, live, "lazy-pages", program=makes[daemon])
    criu(live, "restore", "images", "-d", "--lazy-pages", program=makes[restore])
    assert live.verdict() == "ok"
    assert filling.ended() == 0
    if daemon == "theirs":  # the images say which pages it may fill
        assert int(TRANSFERRED.search(filling.log())[1]) > 40000


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("daemon", "restore"), [("ours", "ours"), ("ours", "theirs"), ("theirs", "theirs")]
)
def test_memory_comes_from_a_dump(makes, start, beside, daemon, restore, tls):  # noqa: F811
    """Of ours: a server of theirs cannot answer on Linux 6.18 (splice: EBADF)."""
    live = start("memory_lazy")
    live.await_ready()
    at = ["--address", "localhost" if tls else "127.0.0.1", "--port", str(free_port())]
    at += certificates(live.folder) if tls else []
    dump = beside(Beside, live, "dump", "-t", str(live.pid), "--lazy-pages", *at, *SKIP)
    filling = beside(Beside, live, "lazy-pages", "--page-server", *at, program=makes[daemon])
    moved = beside(Elsewhere, live, "--lazy-pages", program=makes[restore])
    assert moved.verdict() == "ok"
    assert (filling.ended(), dump.ended()) == (0, 0)
    await_gone(live.pid)

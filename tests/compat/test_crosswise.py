# SPDX-License-Identifier: Apache-2.0
"""Debian's criu restores what torpor dumped of trees of the host, and torpor what criu dumped."""

import subprocess

import pytest

from tests.functional.conftest import start  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.root, pytest.mark.compat]

CASES = [
    ("core_blocked", "read"),
    ("core_blocked", "nanosleep_absolute"),
    ("core_threaded",),
    ("core_shared",),
    ("core_signals",),
    ("core_tree",),
    ("core_threads",),
    ("core_busy",),
    ("core_memory",),
    ("core_cow",),
]
OURS_ONLY = [
    ("core_blocked", "poll"),  # criu's images say that poll was interrupted
    ("core_user",),  # criu 4.2 may not read the limits of another user's task here
]
COMMON = ("-v4", "--network-lock", "skip")


def criu(command, log):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120
    )
    told = log.read_text(errors="replace")[-3000:] if log.exists() else done.stderr
    assert done.returncode == 0, told


def criu_dump(root, live):
    images = live.folder / "images"
    images.mkdir()
    log = images / "dump.log"
    arguments = ("dump", "-t", str(live.pid), "-D", str(images), "-o", log.name, *COMMON)
    criu(root.criu(*arguments), log)
    live.reap(live.pids)


def criu_restore(root, live):
    images = live.folder / "images"
    log = images / "restore.log"
    arguments = ("restore", "-d", "-D", str(images), "-o", log.name, *COMMON)
    criu(root.criu(*arguments), log)
    live.unharmed()


@pytest.mark.parametrize("case", CASES + OURS_ONLY, ids=" ".join)
def test_torpor_dumps_and_criu_restores(criu_root, start, case):  # noqa: F811
    live = start(*case)
    live.await_file("ready")
    live.dump()
    criu_restore(criu_root, live)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_criu_dumps_and_torpor_restores(criu_root, start, case):  # noqa: F811
    live = start(*case)
    live.await_file("ready")
    live.mark()
    criu_dump(criu_root, live)
    live.restore()
    assert live.verdict() == "ok"

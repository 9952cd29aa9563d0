# SPDX-License-Identifier: Apache-2.0
"""What the engine opens and what it may: no page frame numbers, no more than two capabilities."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.functional.conftest import program
from tests.functional.describe import tree
from tests.functional.harness import Live

pytestmark = [pytest.mark.functional, pytest.mark.root]
NOBODY = 65534
ENGINE = (sys.executable, "-m", "torpor.engine.cli")
READS = re.compile(r"\b(read|pread64|readv|preadv2?|lseek|mmap)\((\d+)<[^>]*/pagemap>")
OPENED = re.compile(r'openat\([^"]*"/proc/\d+/pagemap"[^)]*\) = \d+')
SCANNED = re.compile(r"ioctl\(\d+<[^>]*/pagemap>")
NO_MORE = (
    ("core_blocked", "poll"),
    ("core_blocked", "epoll_wait"),
    ("core_busy",),
    ("core_memory",),
    ("core_signals",),
    ("core_threaded",),
    ("core_shared",),
    ("core_identity",),
    ("core_stopped",),
    ("core_cow",),
)


@pytest.fixture
def place():
    """A folder that an ordinary user reaches; pytest's own are below one that is closed."""
    with tempfile.TemporaryDirectory(prefix="torpor-rights-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def live(place):
    begun = []

    def begin(*case, **options):
        one = Live(place, [*program(case[0]), str(place), *case[1:]], **options)
        begun.append(one)
        return one

    yield begin
    for one in begun:
        one.end()


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/",
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_page_frame_numbers_are_never_read(live, place):
    assert shutil.which("strace"), "tools/run_tests.py installs it"
    one = live("core_shared")
    one.await_file("ready")
    one.mark()
    images = place / "images"
    run(["strace", "-f", "-y", "-o", place / "dump.trace", *ENGINE, "dump", "--leave-running",
         "-t", str(one.pid), "-D", images])  # fmt: skip
    trace = (place / "dump.trace").read_text(errors="replace")
    assert len(OPENED.findall(trace)) >= 4, "the pagemaps of four tasks"
    assert SCANNED.search(trace)
    assert not READS.search(trace), READS.search(trace)
    one.unharmed()
    one.dump("again")
    trace = restored(place, place / "again")
    assert not READS.search(trace), READS.search(trace)
    assert one.verdict() == "ok"


def restored(place, images):
    """Restore under strace. A tracer cannot be traced while it seizes: -f would take its seed."""
    code = (
        "import os, sys; from pathlib import Path; from torpor.engine import api;"
        "from torpor.engine.options import RestoreOptions;"
        "api.restore(RestoreOptions(images_dir=Path(sys.argv[1])))"
    )
    run(["strace", "-y", "-o", place / "restore.trace", sys.executable, "-c", code, images])
    return (place / "restore.trace").read_text(errors="replace")


def as_nobody(*command):
    """An ordinary user with the two capabilities, and no more to be had."""
    capabilities = "+checkpoint_restore,+sys_ptrace"
    return run([
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        f"--inh-caps=-all,{capabilities}", f"--ambient-caps=-all,{capabilities}",
        f"--bounding-set=-all,{capabilities}", "--no-new-privs", *ENGINE, *command,
    ])  # fmt: skip


@pytest.mark.parametrize("case", NO_MORE, ids=" ".join)
def test_two_capabilities_are_enough(live, place, case):
    one = live(*case, user=NOBODY)
    one.await_file("ready")
    one.mark()
    images = place / "images"
    report = json.loads(as_nobody("dump", "--json", "-t", str(one.pid), "-D", str(images)))
    assert report["tasks"] >= 1
    one.reap(one.pids)
    as_nobody("restore", "--json", "-d", "-D", str(images))
    one.unharmed()
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in tree(one.pid)} == {NOBODY}
    assert one.verdict() == "ok"

# SPDX-License-Identifier: Apache-2.0
"""The ways in which harnesses drive `criu`, each with a handful of workloads, with both makes.

What Debian's criu passes, ours passes. TORPOR_FLAVOURS=all takes more workloads, and Debian's criu.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.compat.flavours import (
    Driver,
    await_end,
    await_listener,
    await_path,
    free_port,
    go_on,
    visible,
)
from tests.functional.catalogue.every import CASES
from tests.functional.conftest import start  # noqa: F401 (a fixture)
from tests.functional.test_catalogue import begin

pytestmark = [pytest.mark.root, pytest.mark.compat]
OURS = [sys.executable, "-m", "torpor.engine.criu"]
NAMES = ("core_tree",)
MORE = (
    "core_threads", "memory_shared siblings", "core_memory", "files_pipes", "files_gone plain",
    "tasks_tree zombies", "sockets_scm stream", "devices_pty settings", "sockets_tcp v4",
    "memory_flags grows_down",
)  # fmt: skip
ALL = os.environ.get("TORPOR_FLAVOURS") == "all"
PICKED = [case for case in CASES if case.name in (NAMES + MORE if ALL else NAMES)]
FREEZER = Path("/sys/fs/cgroup/freezer")
ONLY_OURS = pytest.mark.parametrize("make", ["ours"])
"""Debian's criu needs soft-dirty bits; its page server cannot answer on Linux 6.18 (EBADF)."""
LOCK = ("--network-lock", "skip")


@pytest.fixture(params=["ours", "theirs"] if ALL else ["ours"])
def make(request):
    return request.param


@pytest.fixture(params=PICKED, ids=lambda case: case.name)
def drive(request, start, criu_root, make):  # noqa: F811
    case = request.param
    live = begin(start, case)
    driver = Driver(live, OURS if make == "ours" else criu_root.criu())
    driver.case = case
    driver.more = LOCK
    driver.dump_words, driver.restore_words = case.options, case.restore_options
    yield driver
    driver.end()


def there(drive):
    drive.dump(*drive.dump_words)


def back(drive, *words, **more):
    drive.restore(*drive.restore_words, *words, **more)


def content(drive):
    assert drive.live.verdict() == "ok"


def test_rounds(drive):
    before = visible(drive.live.pid)
    for _ in range(3):
        drive.next()
        there(drive)
        back(drive)
        assert visible(drive.live.pid) == before
    content(drive)


def test_runs_on(drive):
    before = visible(drive.live.pid)
    for _ in range(2):
        drive.next()
        drive.dump(*drive.dump_words, "--leave-running", ends=False)
        drive.live.unharmed()
        assert visible(drive.live.pid) == before
    content(drive)


def test_stays_stopped(drive):
    drive.next()
    drive.dump(*drive.dump_words, "--leave-stopped", ends=False)
    if "--tcp-established" in drive.dump_words:  # what is kept goes on in the restored tree only
        for pid in drive.live.pids:
            os.kill(pid, signal.SIGKILL)
        drive.live.reap(drive.live.pids)
        back(drive)
    go_on(drive.live.pids)
    drive.live.unharmed()
    content(drive)


def test_comes_back_stopped(drive):
    before = visible(drive.live.pid)
    drive.next()
    there(drive)
    drive.live.at_rest, usual = dict.fromkeys(()), drive.live.at_rest
    drive.live.unharmed = lambda: None
    back(drive, "--leave-stopped")
    del drive.live.unharmed
    go_on(drive.live.pids)
    drive.live.at_rest = usual
    drive.live.unharmed()
    assert visible(drive.live.pid) == before
    content(drive)


def test_sibling(drive):
    """Restored as a child of who calls: a process between, as a supervisor is."""
    drive.next()
    there(drive)
    back(drive, "--restore-sibling")
    status = Path(f"/proc/{drive.live.pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" in status
    content(drive)


@ONLY_OURS
def test_pre_dumps(drive):
    before = visible(drive.live.pid)
    for _ in range(2):
        for _ in range(2):
            earlier = drive.next()
            words = ["--track-mem", *earlier, *drive.dump_words]
            drive.run("pre-dump", "-t", str(drive.live.pid), *words)
            drive.live.unharmed()
        earlier = drive.next()
        drive.dump("--track-mem", *earlier, *drive.dump_words)
        assert (drive.images / "parent").is_symlink()
        assert os.readlink(drive.images / "parent") == f"../{drive.number - 1}"
        back(drive)
        assert visible(drive.live.pid) == before
    content(drive)


@ONLY_OURS
@pytest.mark.parametrize("mode", ["read", "splice"])
def test_modes_of_a_pre_dump(drive, mode):
    words = ["--pre-dump-mode", mode]
    drive.next()
    drive.run("pre-dump", "-t", str(drive.live.pid), "--track-mem", *words, *drive.dump_words)
    drive.dump(*drive.next(), "--track-mem", *drive.dump_words)
    back(drive)
    content(drive)


@ONLY_OURS
@pytest.mark.parametrize("how", ["auto", "command", "restore"])
def test_duplicates(drive, how):
    auto = ["--auto-dedup"] if how != "command" else []
    drive.next()
    drive.run("pre-dump", "-t", str(drive.live.pid), "--track-mem", *auto, *drive.dump_words)
    drive.dump(*drive.next(), "--track-mem", *auto, *drive.dump_words)
    if how == "command":
        drive.run("dedup")
    back(drive, *(auto if how == "restore" else []))
    content(drive)


@ONLY_OURS
def test_snapshots(drive):
    for _ in range(3):
        drive.dump(*drive.next(), "--track-mem", *drive.dump_words, "-R", ends=False)
        drive.live.unharmed()
    drive.dump(*drive.next(), "--track-mem", *drive.dump_words)
    back(drive)
    content(drive)


@pytest.mark.parametrize("how", ["daemon", "beside"])
def test_page_server(drive, how):
    for _ in range(2):
        drive.next()
        port = free_port()
        words = ["--port", str(port)]
        if how == "daemon":
            pidfile = drive.images / "server.pid"
            drive.run("page-server", *words, "--daemon", "--pidfile", str(pidfile))
            server = int(pidfile.read_text())
        else:
            server = drive.start("page-server", *words).pid
            await_listener(port)
        to = ["--page-server", "--address", "127.0.0.1", "--port", str(port)]
        drive.dump(*drive.dump_words, *to)
        await_end(server)
        back(drive)
    content(drive)


@ONLY_OURS
def test_page_server_and_pre_dumps(drive):
    earlier = []
    for command in ("pre-dump", "pre-dump", "dump"):
        earlier = drive.next()
        port = free_port()
        pidfile = drive.images / "server.pid"
        words = ["--port", str(port), "--daemon", "--pidfile", str(pidfile)]
        drive.run("page-server", *words, *earlier)
        server = int(pidfile.read_text())
        to = ["--page-server", "--address", "127.0.0.1", "--port", str(port), "--track-mem"]
        if command == "dump":
            drive.dump(*drive.dump_words, *to, *earlier)
        else:
            drive.run(command, "-t", str(drive.live.pid), *drive.dump_words, *to, *earlier)
        await_end(server)
    back(drive)
    content(drive)


def test_lazy_pages(drive):
    before = visible(drive.live.pid)
    for _ in range(2):
        drive.next()
        there(drive)
        daemon = drive.start("lazy-pages")
        await_path(drive.images / "lazy-pages.socket")
        back(drive, "--lazy-pages")
        assert daemon.wait(60) == 0
        assert visible(drive.live.pid) == before
    content(drive)


def test_lazy_pages_in_the_background(drive):
    drive.next()
    there(drive)
    pidfile = drive.images / "lazy.pid"
    drive.run("lazy-pages", "--daemon", "--pidfile", str(pidfile))
    back(drive, "--lazy-pages")
    await_end(int(pidfile.read_text()))
    content(drive)


@ONLY_OURS
def test_remote_lazy_pages(drive):
    """A page server that reads images, a daemon that asks it."""
    drive.next()
    there(drive)
    port = free_port()
    at = ["--address", "127.0.0.1", "--port", str(port)]
    server = drive.start("page-server", "--lazy-pages", "--port", str(port))
    await_listener(port)
    daemon = drive.start("lazy-pages", "--page-server", *at)
    await_path(drive.images / "lazy-pages.socket")
    back(drive, "--lazy-pages")
    assert daemon.wait(60) == 0
    await_end(server.pid)
    content(drive)


def test_options_of_a_file(drive):
    drive.next()
    config = drive.live.folder / "options.conf"
    lines = [f"tree {drive.live.pid}", "leave-running", f"images-dir {drive.images}"]
    config.write_text("\n".join([*lines, "verbosity 4", "log-file dump.log", "network-lock skip"]))
    words = [*drive.program, "dump", *drive.dump_words, "--config", str(config)]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=60)
    drive.live.unharmed()
    assert (drive.images / "dump.log").exists()
    config.write_text(f"images-dir {drive.images}\nverbosity 4\nlog-file restore.log\n")
    drive.next()
    there(drive)
    back(drive)
    content(drive)


def test_a_freezer_of_the_tree(drive):
    if not (FREEZER / "cgroup.procs").exists():
        pytest.skip("this machine lacks the hierarchy freezer")
    group = FREEZER / f"flavour-{os.getpid()}"
    group.mkdir()
    try:
        for pid in drive.live.pids:
            with suppress(OSError):  # a zombie
                (group / "cgroup.procs").write_text(str(pid))
        drive.next()
        drive.dump(*drive.dump_words, "--freeze-cgroup", str(group))
        back(drive)
        content(drive)
    finally:
        drive.live.end()
        group.rmdir()


def test_stages(drive):
    script = drive.live.folder / "stage.sh"
    told = drive.live.folder / "told"
    script.write_text(f'#!/bin/sh\necho "$CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR" >> {told}\n')
    script.chmod(0o755)
    drive.next()
    drive.dump(*drive.dump_words, "--action-script", str(script))
    back(drive, "--action-script", str(script))
    stages = [line.split()[0] for line in told.read_text().splitlines()]
    assert {"pre-dump", "post-dump", "post-restore"} <= set(stages)
    content(drive)


@pytest.mark.parametrize("fault", ["1", "130"])
def test_faults_that_are_asked_for(drive, fault, make):
    """CRIU_FAULT is of criu's own builds; here it does nothing."""
    drive.environment["CRIU_FAULT"] = fault
    drive.next()
    try:
        there(drive)
    except AssertionError:
        assert make == "theirs"
        shutil.rmtree(drive.images)
        drive.images.mkdir()
        drive.environment.pop("CRIU_FAULT")
        there(drive)
    drive.environment["CRIU_FAULT"] = fault
    try:
        back(drive)
    except AssertionError:
        assert make == "theirs"
        drive.environment.pop("CRIU_FAULT")
        drive.live.reap(drive.live.pids)
        back(drive)
    content(drive)


OPTIONS = [
    "--unprivileged", "--link-remap --display-stats", "--empty-ns net --skip-in-flight",
    "--ghost-limit 10M --ghost-fiemap", "--external mnt[]:s --enable-external-sharing",
    "--cpu-cap", "--manage-cgroups", "--manage-cgroups=full",
]  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS)
def test_options(drive, words):
    drive.next()
    drive.dump(*drive.dump_words, *words.split())
    back(drive, *words.split())
    content(drive)


def test_a_dump_that_fails(drive):
    drive.next()
    drive.run("dump", "-t", "4194303", status=1)
    drive.run("restore", "-d", status=1)
    content(drive)

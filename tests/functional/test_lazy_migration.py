# SPDX-License-Identifier: Apache-2.0
"""`criu dump --lazy-pages`: the source keeps the pages until a restore elsewhere has them."""

import os
import signal
import socket
import subprocess

import pytest

from tests.functional.harness import PATIENCE_S
from tests.functional.lazyrun import Beside, Elsewhere
from tests.functional.test_incremental import OURS, criu
from tests.functional.test_lazy import await_gone
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.pagefetch import Fetcher
from torpor.engine.images.pages import read_pagemap
from torpor.engine.images.proto import rpc_pb2 as pb
from torpor.engine.images.stats import read_stats

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.fixture
def beside():
    """Whatever is begun is ended."""
    begun = []

    def begin(kind, *args, **more):
        begun.append(kind(*args, **more))
        return begun[-1]

    yield begin
    for one in reversed(begun):
        one.end()


@pytest.fixture
def at():
    """Words for a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    return ["--address", "127.0.0.1", "--port", str(port)]


@pytest.fixture
def source(start, beside, at):
    """A workload, and a dump of it that serves its pages."""

    def begin(program="memory_lazy", *words):
        live = start(program)
        live.await_ready()
        dump = beside(Beside, live, "dump", "-t", str(live.pid), "--lazy-pages", *at,
                      "--network-lock", "skip", *words)  # fmt: skip
        return live, dump

    return begin


def test_memory_comes_from_the_source(source, beside, at):
    live, dump = source()
    assert live.folder.joinpath(f"images/pagemap-{live.pid}.img").exists()
    filling = beside(Beside, live, "lazy-pages", "--page-server", *at)
    moved = beside(Elsewhere, live, "--lazy-pages")
    moved.until("restored")
    assert moved.verdict() == "ok", moved.log()
    assert filling.ended() == 0
    assert dump.ended() == 0
    await_gone(live.pid)
    told = read_stats(live.folder / "images", "stats-dump").dump
    assert told.pages_lazy > 50_000
    assert told.pages_written < 10_000
    assert told.pages_skipped_parent == 0


def test_what_an_earlier_dump_has_comes_from_there(start, beside, at):
    live = start("memory_lazy")
    live.await_ready()
    criu(live, "pre-dump", "before", "-t", str(live.pid), "--track-mem")
    dump = beside(Beside, live, "dump", "-t", str(live.pid), "--lazy-pages", *at,
                  "--prev-images-dir", "../before", "--network-lock", "skip")  # fmt: skip
    filling = beside(Beside, live, "lazy-pages", "--page-server", *at)
    moved = beside(Elsewhere, live, "--lazy-pages")
    assert moved.verdict() == "ok"
    assert (filling.ended(), dump.ended()) == (0, 0)
    told = read_stats(live.folder / "images", "stats-dump").dump
    assert told.pages_skipped_parent > 50_000


def test_a_tree_with_small_memory(source, beside, at):
    live, dump = source("core_memory")
    filling = beside(Beside, live, "lazy-pages", "--page-server", *at)
    moved = beside(Elsewhere, live, "--lazy-pages")
    moved.until("restored")
    assert (filling.ended(), dump.ended()) == (0, 0)
    assert moved.verdict() == "ok"


def test_a_connection_that_was_given(start, beside):
    live = start("memory_lazy")
    live.await_ready()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        dump = beside(Beside, live, "dump", "-t", str(live.pid), "--lazy-pages", "--ps-socket",
                      str(ours.fileno()), pass_fds=[ours.fileno()])  # fmt: skip
        filling = beside(Beside, live, "lazy-pages", "--page-server", "--ps-socket",
                         str(theirs.fileno()), pass_fds=[theirs.fileno()])  # fmt: skip
    moved = beside(Elsewhere, live, "--lazy-pages")
    assert moved.verdict() == "ok"
    assert (filling.ended(), dump.ended()) == (0, 0)


def test_images_are_served(start, beside, at):
    live = start("memory_lazy")
    live.await_ready()
    live.dump()
    server = beside(Beside, live, "page-server", "--lazy-pages", *at)
    filling = beside(Beside, live, "lazy-pages", "--page-server", *at)
    criu(live, "restore", "images", "-d", "--lazy-pages")
    live.unharmed()
    assert live.verdict() == "ok"
    assert (filling.ended(), server.ended()) == (0, 0)


def half_moved(source, beside, at):
    """The source, its dump, and a restore elsewhere whose memory is not there yet."""
    live, dump = source()
    filling = beside(Beside, live, "lazy-pages", "--page-server", *at)
    moved = beside(Elsewhere, live, "--lazy-pages", held=True)
    moved.until("held")
    os.kill(filling.filler(), signal.SIGSTOP)
    moved.go_on()
    assert moved.root(live) is not None
    return live, dump, filling, moved


def test_when_the_receiver_dies_the_source_runs_on(source, beside, at):
    live, dump, filling, moved = half_moved(source, beside, at)
    os.kill(filling.filler(), signal.SIGKILL)
    assert filling.ended() == 1
    assert dump.ended() == 1
    assert "gone before it had all" in dump.log()
    assert moved.root(live) is None
    moved.end()
    live.unharmed()
    assert live.verdict() == "ok"


def test_when_the_dump_dies_the_source_runs_on_and_the_copy_is_ended(source, beside, at):
    live, dump, filling, moved = half_moved(source, beside, at)
    dump.process.kill()
    dump.ended()
    os.kill(filling.filler(), signal.SIGCONT)
    assert filling.ended() == 1
    assert "has gone before all pages were there" in filling.log()
    assert moved.root(live) is None
    moved.end()
    live.unharmed()
    assert live.verdict() == "ok"


@pytest.mark.parametrize("said", [b"", b"nonsense" * 4])
def test_a_stranger_at_the_port_ends_nothing(source, at, said):
    live, dump = source()
    with socket.create_connection(("127.0.0.1", int(at[-1]))) as one:
        one.sendall(said)
        one.shutdown(socket.SHUT_WR)
        assert dump.ended() == 1
    live.unharmed()
    assert live.verdict() == "ok"


def test_a_restore_that_fails_leaves_the_source(source, beside, at):
    live, dump = source()
    filling = beside(Beside, live, "lazy-pages", "--page-server", *at)
    criu(live, "restore", "images", "-d", "--lazy-pages", status=1)  # its pid is taken here
    assert (filling.ended(), dump.ended()) == (1, 1)
    live.unharmed()
    assert live.verdict() == "ok"


def test_a_port_that_is_taken_is_told_before_anything_is_done(start, at):
    live = start("memory_lazy")
    live.await_ready()
    with socket.create_server(("127.0.0.1", int(at[-1]))):
        criu(live, "dump", "images", "-t", str(live.pid), "--lazy-pages", *at, status=1)
    assert not live.folder.joinpath("images/pstree.img").exists()
    live.unharmed()


def test_nobody_at_the_port(start, beside, at):
    live = start("memory_lazy")
    live.await_ready()
    live.dump()
    words = ["lazy-pages", "-D", "images", "--page-server", *at]
    done = subprocess.run(
        [*OURS, *words], cwd=live.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot connect to" in done.stderr
    criu(live, "restore", "images", "-d", "--lazy-pages", status=1)


def test_without_the_daemon_such_images_are_refused(source, beside, at):
    live, dump = source()
    refused = beside(Elsewhere, live)
    assert refused.process.wait(PATIENCE_S) == 1
    assert "still where it was dumped" in refused.log()
    dump.end()
    live.unharmed()


def test_a_server_has_to_be_named(start):
    live = start("memory_lazy")
    live.await_ready()
    for command in (["dump", "-t", str(live.pid), "--lazy-pages"], ["lazy-pages", "--page-server"]):
        done = subprocess.run(
            [*OURS, *command, "-D", str(live.folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "--address and --port" in done.stderr
    live.unharmed()


def test_a_dump_by_request_tells_when_it_can_be_asked(start, at):
    live = start("memory_lazy")
    live.await_ready()
    images = live.folder / "images"
    images.mkdir()
    caller, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = subprocess.Popen(
        [*OURS, "swrk", str(theirs.fileno())], pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()
    request = pb.criu_req(type=pb.DUMP)
    request.opts.images_dir_fd = -1
    request.opts.images_dir = str(images)
    request.opts.pid, request.opts.lazy_pages = live.pid, True
    request.opts.notify_scripts, request.opts.network_lock = True, pb.SKIP
    request.opts.ps.address, request.opts.ps.port = at[1], int(at[3])
    stages = []
    with caller:
        caller.settimeout(PATIENCE_S)
        caller.send(request.SerializeToString())
        while (answer := pb.criu_resp.FromString(caller.recv(1 << 16))).type == pb.NOTIFY:
            stages.append(answer.notify.script)
            caller.send(pb.criu_req(type=pb.NOTIFY, notify_success=True).SerializeToString())
            if stages[-1] == "status-ready":
                _ask_for_all(images, live.pid, int(at[3]))
        assert answer.success, answer.cr_errmsg
    assert stages == ["pre-dump", "query-ext-files", "post-dump", "status-ready"]
    assert served.wait(PATIENCE_S) == 0
    await_gone(live.pid)


def _ask_for_all(images, pid, port):
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        ImageDirectory.open(images, verify=Verify.WITHOUT_PAGES) as one,
    ):
        fetcher = Fetcher(connection)
        runs = [run for run in read_pagemap(one, f"pagemap-{pid}").runs if run.is_elsewhere]
        assert runs
        for run in runs:
            got = fetcher.get(pid, run.vaddr, min(run.page_count, 16))
            assert any(got)
        fetcher.end()

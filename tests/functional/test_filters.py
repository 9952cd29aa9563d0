# SPDX-License-Identifier: Apache-2.0
"""Seccomp filters in force while we trace: read before, obeyed, and never tried.

The engine may suspend filters as root, so here it believes that it may not, and has them read by
the test, which is root. That it works without CAP_SYS_ADMIN and with the helper is at the end.
"""

import subprocess
import sys
import time

import pytest

from native.build import build_programs
from tests.functional.conftest import program
from tests.functional.describe import tree
from tests.functional.harness import Live
from torpor.engine import api, native
from torpor.engine.errors import Denied, Findings, Vanished
from torpor.engine.kernel import ptrace
from torpor.engine.kernel.proc import parse_stat, read_text
from torpor.engine.options import After, DumpOptions, MemoryWay
from torpor.plugin.agent.pidhelper import PidHelper

pytestmark = [pytest.mark.functional, pytest.mark.root]
RUNTIME = 9
"""As many filters as a runtime may have put there."""


def read_here(tid, number):
    gone, _ = native.stop_all([tid], 0, 5.0)
    if gone:
        raise Vanished("has ended", subject=f"thread {tid}")
    try:
        return native.seccomp_filters(tid)[number]
    finally:
        ptrace.release_all([tid])


@pytest.fixture(autouse=True)
def no_right(monkeypatch):
    monkeypatch.setattr("torpor.engine.dump.treedump.may_read_filters", lambda: False)


def begun(start, *filters):
    live = start("filters_set", *filters)
    live.await_file("ready")
    live.mark()
    return live


def dump(live, way=MemoryWay.AUTO, name="images", **more):
    options = {"read_filter": read_here, "runtime_seccomp_filters": RUNTIME} | more
    live.dump(name, After.CONTINUE, memory=way, **options)
    return live.report.memory_way, live.report.memory_reason


@pytest.mark.parametrize(
    "filters",
    [(), ("mremap=kill",), ("userfaultfd=errno", "semctl=kill"), ("t:clone=kill",)],
    ids=" ".join,
)
def test_a_task_whose_filters_allow_it_is_forked(start, filters):
    live = begun(start, *filters)
    way, reason = dump(live)
    assert way is MemoryWay.SNAPSHOT, reason
    assert live.verdict() == "ok"


@pytest.mark.parametrize(
    "name", ["clone=errno", "clone=kill", "clone=trap", "close_range=kill", "close_range=errno"]
)
def test_a_task_that_may_not_fork_is_copied(start, name):
    live = begun(start, name)
    way, reason = dump(live)
    assert way is MemoryWay.FROZEN
    assert f"a seccomp filter of task {live.pid} forbids the fork" in reason
    assert live.verdict() == "ok"


def test_filters_that_nobody_reads_are_not_tried(start):
    live = begun(start, "clone=kill")
    way, reason = dump(live, read_filter=None)
    assert way is MemoryWay.FROZEN
    assert "may forbid the fork (its filters can only be read with CAP_SYS_ADMIN)" in reason
    assert live.verdict() == "ok"


def test_a_reader_that_is_refused_is_told_of(start):
    def refuse(tid, number):
        raise Denied("the helper refused", subject=f"{tid}, {number}", cause="no right at all")

    live = begun(start, "clone=kill")
    way, reason = dump(live, read_filter=refuse)
    assert way is MemoryWay.FROZEN
    assert "may forbid the fork (no right at all)" in reason
    assert live.verdict() == "ok"


@pytest.mark.parametrize(
    ("filters", "call"),
    [
        (("getitimer=kill",), "getitimer"),
        (("rt_sigaction=errno",), "rt_sigaction"),
        (("rt_sigreturn=errno",), "rt_sigreturn"),
        (("sigaltstack=trap",), "sigaltstack"),
        (("t:sigaltstack=kill",), "sigaltstack"),
        (("mremap=errno", "t:mremap=kill", "t:sigaltstack=errno"), "sigaltstack"),
    ],
)
def test_a_task_that_could_not_answer_is_refused(start, filters, call):
    live = begun(start, *filters)
    with pytest.raises(Findings, match="forbids what a dump asks the task itself") as error:
        dump(live)
    assert error.value.cause == call
    live.unharmed()
    assert live.verdict() == "ok"


def test_what_a_task_is_not_asked_does_not_matter(start):
    live = begun(start, "timer_gettime=kill", "t:mremap=kill")
    assert dump(live)[0] is MemoryWay.SNAPSHOT
    assert live.verdict() == "ok"


def test_writes_are_watched_where_that_is_allowed(start):
    live = begun(start, "clone=kill")
    assert dump(live, MemoryWay.PRECOPY)[0] is MemoryWay.PRECOPY
    assert live.verdict() == "ok"


@pytest.mark.parametrize("action", ["errno", "kill"])
def test_no_pre_copy_of_a_task_that_may_not_be_watched(start, action):
    live = begun(start, f"userfaultfd={action}")
    way, reason = dump(live, MemoryWay.PRECOPY)
    assert way is MemoryWay.SNAPSHOT
    assert reason.startswith(
        f"no pre-copy, because a seccomp filter of task {live.pid} forbids userfaultfd; the tasks"
    )
    assert live.verdict() == "ok"


def test_a_filter_that_comes_meanwhile(start):
    live = begun(start, "mremap=kill")
    told = []

    def add(progress):
        if progress.phase == "prepare memory":
            (live.folder / "more").touch()
            live.await_file("added")
        elif progress.phase == "again":
            told.append(progress.text)

    options = DumpOptions(
        pid=live.pid,
        images_dir=live.folder / "images",
        after=After.CONTINUE,
        read_filter=read_here,
        runtime_seccomp_filters=RUNTIME,
    )
    (report,) = api.dump([options], progress=add)
    (text,) = told
    assert "set a seccomp filter just now" in text
    assert report.memory_way is MemoryWay.SNAPSHOT
    live.unharmed()
    assert live.verdict() == "ok"


def test_filters_of_its_own_come_back(start):
    live = start("core_seccomp")
    live.await_ready()
    before = live.look()
    dump(live, runtime_seccomp_filters=0)
    live.same_as(before)
    live.end()
    live.restore("images")
    live.same_as(before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize(("filters", "found"), [("mremap=kill", True), ("semctl=kill", False)])
def test_objects_of_its_ipc_namespace(tmp_path, filters, found):
    words = " ".join([*program("filters_set"), str(tmp_path), filters])
    live = Live(tmp_path, ["unshare", "--ipc", "sh", "-c", f"ipcmk -S 3; exec {words}"])
    try:
        live.await_file("ready")
        live.mark()
        if found:
            with pytest.raises(Findings, match="ipc namespace"):
                dump(live, container=True)
        else:
            dump(live, container=True)
        assert live.verdict() == "ok"
    finally:
        live.end()


AGENT_RIGHTS = "+sys_ptrace,+checkpoint_restore,+dac_read_search,+dac_override"
HELPER_RIGHTS = "+sys_admin,+sys_ptrace"
AS_AGENT = """
import sys
from pathlib import Path
from torpor.engine import api
from torpor.engine.options import After, DumpOptions
from torpor.plugin.agent.pidhelper import PidHelper
(report,) = api.dump([DumpOptions(
    pid=int(sys.argv[1]), images_dir=Path(sys.argv[2]), after=After.CONTINUE, container=True,
    runtime_seccomp_filters=2, read_filter=PidHelper(Path(sys.argv[3])).filter,
)])
print(report.memory_way.value, report.memory_reason)
"""


def with_rights(rights, *command):
    sets = (f"--inh-caps=-all,{rights}", f"--bounding-set=-all,{rights}")
    return ["setpriv", *sets, "--no-new-privs", *map(str, command)]


VFORKS = """
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog program = { 1, code };
	struct timespec rest = { 0, 700000000 };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		return 1;
	if (!vfork()) {
		nanosleep(&rest, 0);
		_exit(0);
	}
	pause();
}
"""


def in_vfork(pid):
    return [one for one in tree(pid)[1:] if parse_stat(read_text(one, "stat")).state == "D"]


def test_the_helper_waits_for_a_thread_that_stops_late(tmp_path):
    """Its parent of a vfork cannot stop before the child is gone."""
    helper = next(one for one in build_programs(tmp_path / "built") if one.name.endswith("helper"))
    place, binary = tmp_path / "helper.sock", tmp_path / "vforks"
    words = ["cc", "-x", "c", "-", "-o", str(binary)]
    subprocess.run(words, input=VFORKS, check=True, text=True)
    server = subprocess.Popen(with_rights(HELPER_RIGHTS, helper, "--socket", place))
    task = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", binary])
    try:
        deadline = time.monotonic() + 10
        while not place.exists() or not (waiting := in_vfork(task.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        filter_program, flags = PidHelper(place).filter(waiting[0], 0)
        assert (len(filter_program), flags) == (8, 0)
    finally:
        for process in (task, server):
            process.kill()
            process.wait()


def test_the_rights_of_an_agent_are_enough(tmp_path):
    helper = next(one for one in build_programs(tmp_path / "built") if one.name.endswith("helper"))
    place = tmp_path / "helper.sock"
    command = [*program("filters_set"), str(tmp_path), "mremap=kill", "userfaultfd=errno"]
    server = subprocess.Popen(with_rights(HELPER_RIGHTS, helper, "--socket", place))
    live = Live(tmp_path, ["unshare", "--pid", "--fork", "--kill-child", *command])
    try:
        live.await_file("ready")
        live.mark()
        (inside,) = live.pids - {live.pid}
        done = subprocess.run(
            with_rights(AGENT_RIGHTS, sys.executable, "-c", AS_AGENT, inside, tmp_path / "images",
                        place),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("snapshot the tasks run on"), done.stdout
        assert live.verdict() == "ok"
    finally:
        live.end()
        server.kill()
        server.wait()

# SPDX-License-Identifier: Apache-2.0
"""Parsers of /proc against texts recorded on Linux 6.18, and readers against ourselves."""

import os
import signal
from pathlib import Path

import pytest

from tests.fixtures.proc_texts import fixture
from torpor.engine.errors import Denied, KernelError, Vanished
from torpor.engine.kernel import proc


def test_stat_with_a_bracket_in_the_name():
    stat = proc.parse_stat(fixture("stat"))
    assert (stat.pid, stat.comm, stat.state, stat.ppid) == (25402, "fix ) ture", "S", 25368)
    assert (stat.pgrp, stat.session, stat.num_threads, stat.exit_signal) == (25368, 6484, 2, 17)
    assert stat.start_brk == 94788750942208
    assert stat.env_end == 140732195651556
    assert stat.exit_code == 0


def test_stat_of_an_older_kernel_is_shorter():
    short = " ".join(fixture("stat").split()[:-4])
    assert proc.parse_stat(short).env_end == 0


def test_status():
    status = proc.parse_status(fixture("status"))
    assert (status.name, status.state, status.umask) == ("fix ) ture", "S", 0o022)
    assert (status.tgid, status.ns_pid, status.ns_sid) == (25402, (25402,), (6484,))
    assert status.uid == (0, 0, 0, 0)
    assert status.groups == ()
    assert status.sig_blk == 1 << (signal.SIGUSR2 - 1)
    assert status.sig_pnd == 1 << (signal.SIGUSR2 - 1)
    assert status.sig_cgt >> (signal.SIGUSR1 - 1) & 1
    assert status.cap_eff == 0x1FFFEFFFFFF
    assert (status.seccomp, status.no_new_privs, status.threads) == (0, 0, 2)
    assert status.thp_enabled
    assert not status.shadow_stack


def test_status_without_newer_fields():
    text = "Name:\told\nState:\tZ (zombie)\nTgid:\t5\nx86_Thread_features:\tshstk wrss\n"
    status = proc.parse_status(text)
    assert status.umask is None
    assert status.seccomp_filters == 0
    assert status.shadow_stack


def test_readers_on_ourselves():
    me = os.getpid()
    assert proc.parse_status(proc.read_text(me, "status")).pid == me
    assert me in proc.threads(me)
    assert os.path.samefile(proc.read_link(me, "exe"), "/proc/self/exe")
    child = os.fork()
    if child == 0:
        signal.pause()
    assert child in proc.children(me)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for read in (proc.threads, proc.children, lambda pid: proc.read_text(pid, "maps")):
        with pytest.raises(Vanished):
            read(child)
    with pytest.raises(KernelError):
        proc.read_text(me, "task")


def test_what_may_not_be_read_is_denied(tmp_path):
    if os.geteuid() != 0:
        with pytest.raises(Denied):
            proc.read_text(1, "environ")
        return
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            proc.read_text(1, "environ")
        except Denied:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("shown", "name"),
    [(b"plain", b"plain"), (b"a\\nb", b"a\nb"), (b"a\\\\nb", b"a\\nb"), (b"fix ) t", b"fix ) t")],
)
def test_thread_name(shown, name):
    assert proc.thread_name(b"Name:\t" + shown + b"\nUmask:\t0022\n") == name


def test_many_files_in_one_go():
    mine = os.getpid()
    maps, gone, none = proc.read_many([(mine, "maps"), (1 << 30, "maps"), (mine, "nothing")])
    assert b"[stack]" in maps
    assert isinstance(gone, Vanished)
    assert isinstance(none, Vanished)
    assert proc.read_many([]) == []


def test_a_text_larger_than_the_room(monkeypatch):
    monkeypatch.setattr("torpor.engine.native.questions.TEXT_ROOM", 64)
    monkeypatch.setattr("torpor.engine.native.questions.TYPICAL_TEXT", 0)
    first, second = proc.read_many([(os.getpid(), "status"), (os.getpid(), "cmdline")])
    assert first.startswith(b"Name:")
    assert first.endswith(b"\n")
    assert second == Path("/proc/self/cmdline").read_bytes()

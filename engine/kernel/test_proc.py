# SPDX-License-Identifier: Apache-2.0
"""Parsers of /proc against texts recorded on Linux 6.18, and readers against ourselves."""

import os
import signal
from pathlib import Path

import pytest

from torpor.engine.errors import Denied, KernelError, Vanished
from torpor.engine.kernel import proc

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "proc"


def fixture(name):
    return (FIXTURES / f"{name}-6.18-x86_64.txt").read_text(encoding="utf-8")


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


def test_maps():
    maps = proc.parse_maps(fixture("maps"))
    assert len(maps) == 28
    text = maps[1]
    assert (text.start, text.end, text.prot, text.offset) == (
        0x56358BCBD000,
        0x56358BCBE000,
        "r-xp",
        0x1000,
    )
    assert (text.dev_major, text.dev_minor, text.inode) == (0xFE, 0, 9977937)
    assert text.name == "/tmp/fixture-target"
    odd, gone = maps[15:17]
    assert odd.name == "/tmp/fixture\nline (deleted)"
    assert odd.deleted
    assert (gone.shared, gone.size) == (True, 4096)
    assert maps[6].name == ""
    assert maps[-1].start == 0xFFFFFFFFFF600000


def test_smaps_has_the_same_mappings():
    smaps = proc.parse_smaps(fixture("smaps"))
    maps = proc.parse_maps(fixture("maps"))
    assert [(v.start, v.end, v.prot, v.name) for v in smaps] == [
        (v.start, v.end, v.prot, v.name) for v in maps
    ]
    stack = next(v for v in smaps if v.name == "[stack]")
    assert "gd" in stack.vm_flags
    assert stack.anonymous_kb > 0
    assert stack.swap_kb == 0
    area = next(v for v in smaps if v.start == 0x7F6D7F2FB000)
    assert area.anonymous_kb >= 8
    assert area.rss_kb >= area.anonymous_kb


def test_limits():
    limits = proc.parse_limits(fixture("limits"))
    assert len(limits) == 16
    assert limits[7] == (20000, 20000)
    assert limits[3] == (8388608, proc.RLIM_INFINITY)
    assert limits[15] == (proc.RLIM_INFINITY, proc.RLIM_INFINITY)
    assert limits[13] == (0, 0)


def test_timers():
    timers = proc.parse_timers(fixture("timers"))
    assert [t.timer_id for t in timers] == [2, 1, 0]
    assert (timers[0].notify, timers[0].notify_tid, timers[0].clock_id) == ("signal", 25402, 7)
    assert timers[1].notify == "none"
    assert (timers[2].signal, timers[2].value, timers[2].notify_tid) == (10, 0x1234, 0)
    assert proc.parse_timers("") == []


def test_cgroup():
    entries = proc.parse_cgroup(fixture("cgroup"))
    assert entries[0].controllers == ("name=systemd",)
    assert (entries[5].controllers, entries[5].path) == (("memory",), "/jobs/one")
    assert (entries[-1].hierarchy, entries[-1].controllers) == (0, ())


def test_mountinfo():
    mounts = proc.parse_mountinfo(fixture("mountinfo"))
    root = next(m for m in mounts if m.mount_point == "/")
    assert (root.fs_type, root.source, root.dev_major, root.shared) == ("ext4", "/dev/vda", 254, 0)
    line = (
        r"40 36 0:35 /a\040b /mnt\134x rw,noatime shared:7 master:3 propagate_from:2 unbindable"
        " - fuse.x none rw,a=b"
    )
    (mount,) = proc.parse_mountinfo(line + "\n")
    assert (mount.root, mount.mount_point) == ("/a b", "/mnt\\x")
    assert (mount.shared, mount.master, mount.propagate_from) == (7, 3, 2)
    assert mount.unbindable
    assert mount.super_options == ("rw", "a=b")
    (bare,) = proc.parse_mountinfo("1 0 0:1 / / rw - rootfs none rw")
    assert bare.fs_type == "rootfs"


def test_fdinfo_head():
    head = proc.parse_fdinfo_head(fixture("fdinfo"))
    assert (head.pos, head.flags, head.mnt_id, head.ino) == (0, 0o100002, 27, 9977881)
    assert head.rest == ()
    more = proc.parse_fdinfo_head("pos:\t5\nflags:\t02\nmnt_id:\t15\neventfd-count: 2a\n")
    assert (more.ino, more.rest) == (0, ("eventfd-count: 2a",))


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


def test_area_with_an_address():
    maps = fixture("maps").encode()
    for vma in proc.parse_maps(maps.decode()):
        assert proc.area_with(maps, vma.start) == (vma.start, vma.end)
        assert proc.area_with(maps, vma.end - 1) == (vma.start, vma.end)
    assert proc.area_with(maps, 0) is None
    assert proc.area_with(b"", 4096) is None


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

# SPDX-License-Identifier: Apache-2.0
"""Limits, timers, cgroups and mounts against texts recorded on Linux 6.18."""

from tests.fixtures.proc_texts import fixture
from torpor.engine.kernel import proctexts


def test_limits():
    limits = proctexts.parse_limits(fixture("limits"))
    assert len(limits) == 16
    assert limits[7] == (20000, 20000)
    assert limits[3] == (8388608, proctexts.RLIM_INFINITY)
    assert limits[15] == (proctexts.RLIM_INFINITY, proctexts.RLIM_INFINITY)
    assert limits[13] == (0, 0)


def test_timers():
    timers = proctexts.parse_timers(fixture("timers"))
    assert [t.timer_id for t in timers] == [2, 1, 0]
    assert (timers[0].notify, timers[0].notify_tid, timers[0].clock_id) == ("signal", 25402, 7)
    assert timers[1].notify == "none"
    assert (timers[2].signal, timers[2].value, timers[2].notify_tid) == (10, 0x1234, 0)
    assert proctexts.parse_timers("") == []


def test_cgroup():
    entries = proctexts.parse_cgroup(fixture("cgroup"))
    assert entries[0].controllers == ("name=systemd",)
    assert (entries[5].controllers, entries[5].path) == (("memory",), "/jobs/one")
    assert (entries[-1].hierarchy, entries[-1].controllers) == (0, ())


def test_mountinfo():
    mounts = proctexts.parse_mountinfo(fixture("mountinfo"))
    root = next(m for m in mounts if m.mount_point == "/")
    assert (root.fs_type, root.source, root.dev_major, root.shared) == ("ext4", "/dev/vda", 254, 0)
    line = (
        r"40 36 0:35 /a\040b /mnt\134x rw,noatime shared:7 master:3 propagate_from:2 unbindable"
        " - fuse.x none rw,a=b"
    )
    (mount,) = proctexts.parse_mountinfo(line + "\n")
    assert (mount.root, mount.mount_point) == ("/a b", "/mnt\\x")
    assert (mount.shared, mount.master, mount.propagate_from) == (7, 3, 2)
    assert mount.unbindable
    assert mount.super_options == ("rw", "a=b")
    (bare,) = proctexts.parse_mountinfo("1 0 0:1 / / rw - rootfs none rw")
    assert bare.fs_type == "rootfs"

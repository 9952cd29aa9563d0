# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from torpor.engine.errors import KernelError, Refused
from torpor.engine.kernel import cgroupfs
from torpor.engine.kernel.cgroupfs import Hierarchies
from torpor.engine.kernel.proctexts import parse_mountinfo

MOUNTS = """\
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 /pod/x /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids,xattr
35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd,release_agent=/x
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
42 31 0:39 / /tmp rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("cpu,cpuacct", "/a", "/sys/fs/cgroup/cpu/a"),
        ("pids", "/pod/x", "/sys/fs/cgroup/pids"),
        ("pids", "/pod/x/y", "/sys/fs/cgroup/pids/y"),
        ("pids", "/pod/xy", None),
        ("name=systemd", "/", "/sys/fs/cgroup/systemd"),
        ("", "/b/c", "/sys/fs/cgroup/unified/b/c"),
        ("memory", "/", None),
    ],
)
def test_where_a_group_is(name, path, expected):
    here = Hierarchies(parse_mountinfo(MOUNTS))
    assert here.directory(name, path) == (Path(expected) if expected else None)


def test_settings_making_and_entering(tmp_path):
    made = cgroupfs.make(tmp_path / "a" / "b")
    assert made == [tmp_path / "a", tmp_path / "a" / "b"]
    assert cgroupfs.make(tmp_path / "a" / "b") == []
    (tmp_path / "a" / "pids.max").write_text("7\n")
    (tmp_path / "a" / "cgroup.procs").touch()
    assert [(one.name, one.text) for one in cgroupfs.settings(tmp_path / "a", "pids")] == [
        ("pids.max", "7"),
        ("cgroup.procs", ""),
    ]
    assert [one.name for one in cgroupfs.settings(tmp_path / "a", "pids", {"pids": ()})] == [
        "cgroup.procs"
    ]
    assert cgroupfs.below(tmp_path) == [tmp_path / "a", tmp_path / "a" / "b"]
    cgroupfs.enter(tmp_path / "a", 41)
    assert (tmp_path / "a" / "cgroup.procs").read_text() == "41"


def test_controllers_are_switched_on(tmp_path):
    (tmp_path / "cgroup.subtree_control").touch()
    cgroupfs.write(tmp_path, "cgroup.subtree_control", "cpu memory")
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_what_is_not_there(tmp_path):
    with pytest.raises(Refused):
        cgroupfs.enter(tmp_path / "a", 41)
    with pytest.raises(KernelError):
        cgroupfs.write(tmp_path, "pids.max", "7")

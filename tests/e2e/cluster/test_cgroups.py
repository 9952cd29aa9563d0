# SPDX-License-Identifier: Apache-2.0
"""Which hierarchies there are, and what is done with a (fake) tree of groups."""

import pytest

from deploy.image.process import BuildError
from tests.e2e.cluster import cgroups

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,release_agent=/lib/x,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
cgroup /elsewhere cgroup rw,cpu 0 0
"""
UNIFIED = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nsdelegate,memory_recursiveprot 0 0\n"


@pytest.fixture
def unified(tmp_path, monkeypatch):
    """A version 2 hierarchy of ordinary files."""
    monkeypatch.setattr(cgroups, "TOP", tmp_path)
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    found = cgroups.hierarchies(mounts)
    monkeypatch.setattr(cgroups, "hierarchies", lambda: found)
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    return tmp_path


def test_hybrid():
    found = cgroups.hierarchies(HYBRID)
    assert [(h.where.name, h.kind, h.options) for h in found] == [
        ("cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        ("systemd", "cgroup", "name=systemd"),
        ("unified", "cgroup2", ""),
    ]
    assert not any(h.unified for h in found)


def test_unified():
    (only,) = cgroups.hierarchies(UNIFIED)
    assert only.unified
    assert only.options == ""


def test_none_is_an_error():
    with pytest.raises(BuildError, match="no control groups"):
        cgroups.hierarchies("proc /proc proc rw 0 0\n")


def test_version_2_node_processes_are_below_the_node(unified):
    assert cgroups.create("torpor-x-a") == [unified / "torpor-x-a/node"]
    node = unified / "torpor-x-a"
    for group in (node, node / "node"):
        (group / "cgroup.controllers").write_text("cpu memory\n")
    cgroups.hand_out("torpor-x-a", 10, 11)
    assert (node / "outer/cgroup.procs").read_text() == "10\n"
    assert (node / "node/system/cgroup.procs").read_text() == "11\n"
    assert cgroups.joined("torpor-x-a") == [node / "node/system"]
    assert cgroups.pids("torpor-x-a") == {10, 11}
    assert cgroups.groups_named("torpor-x-") == ["torpor-x-a"]


def test_version_2_controllers_that_are_switched_on(unified):
    assert cgroups.enable_wanted() == ["cpuset", "cpu", "io"]
    (unified / "cgroup.controllers").write_text("cpuset cpu\n")
    with pytest.raises(BuildError, match="memory, pids"):
        cgroups.enable_wanted()


def test_removed_as_far_as_empty(tmp_path):
    (tmp_path / "g/sub/deep").mkdir(parents=True)
    assert cgroups._remove(tmp_path / "g")
    (tmp_path / "h/sub").mkdir(parents=True)
    (tmp_path / "h/busy").write_text("")
    assert not cgroups._remove(tmp_path / "h")
    assert not (tmp_path / "h/sub").exists()

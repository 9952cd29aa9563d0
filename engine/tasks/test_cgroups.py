# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.tasks import cgroups
from torpor.engine.tasks.cgroups import OWN_SET, Cgroups, Group, Rights, Setting

TEXT = "3:cpu,cpuacct:/a\n2:name=systemd:/\n0::/b/c\n"
OWN = cgroups.places("3:cpu,cpuacct:/\n2:name=systemd:/\n0::/\n")


class Images:
    """A sink that is a source as well."""

    def __init__(self):
        self.written = []

    def add(self, name, message, payload=b""):
        self.written.append((name, message))

    def entries(self, name):
        return [(message, b"") for one, message in self.written if one == name]


def test_groups_of_a_task():
    assert cgroups.places(TEXT) == (("", "/b/c"), ("cpu,cpuacct", "/a"), ("name=systemd", "/"))


def test_sets_have_numbers():
    there = cgroups.places(TEXT)
    assert cgroups.number([OWN, there, there], OWN) == ([1, 2, 2], {1: OWN, 2: there})


def test_through_images():
    rights = Rights(mode=0o40755, uid=1, gid=2)
    held = Cgroups(
        sets={OWN_SET: OWN, 2: cgroups.places(TEXT)},
        groups=(
            Group(
                hierarchy="cpu,cpuacct",
                path="/a",
                rights=rights,
                settings=(Setting(name="cpu.shares", value="12", rights=rights),),
            ),
            Group(hierarchy="name=systemd", path="/", rights=None),
        ),
    )
    images = Images()
    cgroups.encode(held, images)
    back = cgroups.decode(images, OWN_SET)
    assert back.sets == {2: held.sets[2]}
    assert back.groups == held.groups


def test_tasks_where_the_dumping_program_is_need_no_image():
    images = Images()
    cgroups.encode(Cgroups(sets={OWN_SET: OWN}), images)
    assert images.written == []
    assert cgroups.decode(images, OWN_SET).sets == {}


def test_groups_below_others_are_inside_of_their_entries():
    paths = ("/a", "/a/b", "/a/b/c", "/a/d", "/ab", "/e/f")
    groups = tuple(Group(hierarchy="pids", path=path, rights=None) for path in paths)
    images = Images()
    cgroups.encode(Cgroups(sets={2: (("pids", "/a"),)}, groups=groups), images)
    ((_, message),) = images.written
    assert [one.dir_name for one in message.controllers[0].dirs] == [b"a", b"ab", b"e/f"]
    assert cgroups.decode(images, OWN_SET).groups == groups


@pytest.mark.parametrize("name", ["x", "x/y"])
def test_directories_inside_directories(name):
    images = Images()
    child = pb.cgroup_dir_entry(dir_name=b"below")
    above = pb.cgroup_dir_entry(dir_name=name.encode(), children=[child])
    controller = pb.cg_controller_entry(cnames=[b"pids"], dirs=[above])
    images.add("cgroup", pb.cgroup_entry(controllers=[controller]))
    found = cgroups.decode(images, OWN_SET).groups
    assert [one.path for one in found] == [f"/{name}", f"/{name}/below"]

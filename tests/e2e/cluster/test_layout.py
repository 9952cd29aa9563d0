# SPDX-License-Identifier: Apache-2.0
"""Names, paths and the state file of a cluster."""

from pathlib import Path

import pytest

from deploy.image.process import BuildError
from tests.e2e.cluster import layout
from tests.e2e.cluster.layout import Layout, State

MOUNTS = """\
/dev/vda / ext4 rw 0 0
overlay /var/lib/x overlay rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdb /var/lib/x/real xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/y", "ext4"),
        ("/var/lib/x/y", "overlay"),
        ("/var/lib/xyz", "ext4"),
        ("/var/lib/x/real/y", "xfs"),
        ("/run/y", "tmpfs"),
    ],
)
def test_filesystem_of(path, kind):
    assert layout.filesystem_of(Path(path), MOUNTS) == kind


def test_state_is_read_as_written(tmp_path):
    state = State(releases={"a": "sid"}, roots={"trixie": "/r"}, programs="/p", complete=True)
    Layout(tmp_path).write_state(state)
    assert Layout(tmp_path).state() == state
    assert Layout(tmp_path / "none").state() is None


def test_broken_state_says_what_to_do(tmp_path):
    Layout(tmp_path).state_file.write_text("{")
    with pytest.raises(BuildError, match="cannot be read") as failure:
        Layout(tmp_path).state()
    assert failure.value.remedy == "run down"


def test_control_plane_runs_the_first_root(tmp_path):
    state = State(releases={"a": "sid"}, roots={"trixie": "/t", "sid": "/s"}, programs="/p")
    assert Layout(tmp_path).node("lan", state).root == Path("/t")
    assert Layout(tmp_path).node("a", state).root == Path("/s")
    with pytest.raises(BuildError, match="no node c"):
        Layout(tmp_path).node("c", state)


def test_two_directories_are_two_clusters():
    assert Layout(Path("/x")).prefix != Layout(Path("/y")).prefix


@pytest.mark.parametrize("name", ["lan", "A", "a-b", "a/b", "", "../x", "averyveryverylong"])
def test_names_that_cannot_be_nodes(name):
    with pytest.raises(BuildError):
        layout.check_releases({name: "trixie"})


def test_a_directory_of_others_is_refused(tmp_path):
    layout.check_directory(tmp_path)
    (tmp_path / "precious").write_text("")
    with pytest.raises(BuildError, match="other things"):
        layout.check_directory(tmp_path)

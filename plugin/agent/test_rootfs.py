# SPDX-License-Identifier: Apache-2.0
"""Capture and apply on real overlays and mounts, each in a mount namespace of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.engine.errors import Refused, Vanished
from torpor.plugin.agent import rootfs
from torpor.plugin.agent.locate import Container, VolumePart
from torpor.plugin.agent.procview import NodeView
from torpor.plugin.agent.treefile import read_entries

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root"),
]

HELPER = """
import ctypes, os, shutil, subprocess, sys
base = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
def mount(*words): subprocess.run(["mount", *words], check=True)
mount("--make-rprivate", "/")
mount("-t", "overlay", "-o",
      f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work", "o", f"{base}/m")
os.makedirs(f"{base}/m/data", exist_ok=True)
os.makedirs(f"{base}/m/.torpor", exist_ok=True)
os.makedirs(f"{base}/m/secret", exist_ok=True)
open(f"{base}/m/etc/hosts", "w").close()
mount("--bind", f"{base}/volume", f"{base}/m/data")
mount("-t", "tmpfs", "t", f"{base}/m/.torpor")
mount("-t", "tmpfs", "t", f"{base}/m/secret")
mount("--bind", f"{base}/hosts", f"{base}/m/etc/hosts")
os.makedirs(f"{base}/m/secret/..2025_1")
os.symlink("..2025_1", f"{base}/m/secret/..data")
os.chroot(f"{base}/m")
os.chdir("/")
exec(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


class Fake:
    """A "container": a process chrooted into an overlay of its own."""

    def __init__(self, base: Path, code: str = "") -> None:
        self.base = base
        for name in ("upper", "work", "m", "volume"):
            (base / name).mkdir(parents=True)
        make_image(base / "lower")
        (base / "hosts").write_text("127.0.0.1 localhost\n")
        self.process = subprocess.Popen(
            [sys.executable, "-c", HELPER, str(base), code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.view = NodeView(host_root=Path("/"))
        self.root = self.view.root_of(self.process.pid)
        self.part = VolumePart(name="data", sub_path="", mount_path="/data")

    @property
    def container(self) -> Container:
        return Container(
            name="app", container_id="c", image="", image_id="", init_pid=self.process.pid,
            pids=(), cgroup=self.base, mounts=self.view.mounts(self.process.pid), volumes=(),
        )  # fmt: skip

    def close(self) -> None:
        self.process.communicate()


def make_image(lower: Path) -> None:
    (lower / "etc").mkdir(parents=True)
    (lower / "etc" / "conf").write_text("old")
    (lower / "etc" / "other").write_text("same")
    (lower / "bin").mkdir()
    (lower / "bin" / "tool").write_text("tool")
    (lower / "cache" / "sub").mkdir(parents=True)
    (lower / "cache" / "sub" / "old").write_text("old")
    (lower / "cache" / "old").write_text("old")
    (lower / "run").symlink_to("/var/run")
    (lower / "gone").write_text("x")


CHANGES = """

open("/etc/conf", "w").write("new")
open("/etc/added", "w").write("added"); os.link("/etc/added", "/etc/added2")
os.chown("/bin/tool", 7, 8); os.chmod("/bin/tool", 0o4711)
os.remove("/gone")
shutil.rmtree("/cache"); os.mkdir("/cache"); open("/cache/fresh", "w").write("f")
os.remove("/run"); os.mkdir("/run"); os.symlink("../etc", "/run/link")
os.setxattr("/etc/added", "user.a", b"b")
open("/etc/hosts", "w").write("changed by kubelet")
open("/secret/key", "w").write("key")
open("/data/file", "w").write("in the volume")
os.mkdir("/data/dir", 0o700)
"""


@pytest.fixture
def fakes(tmp_path: Path):
    made: list[Fake] = []

    def make(name: str, code: str = "") -> Fake:
        made.append(Fake(tmp_path / name, code))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_changes_come_back(fakes, tmp_path: Path):
    old = fakes("old", CHANGES)
    captured = rootfs.capture_root(old.container, old.view, tmp_path / "root")
    assert captured.notes == ()
    paths = {entry.path for entry in read_entries(tmp_path / "root")}
    assert "etc/conf" in paths
    assert "etc/other" not in paths
    assert not paths & {"etc/hosts", "secret", "secret/key", "data", "data/file", ".torpor"}

    new = fakes("new")
    for _ in range(2):  # a restart of the agent may do it again
        rootfs.apply_root(new.container, new.view, tmp_path / "root")
        root = new.root
        assert (root / "etc" / "conf").read_text() == "new"
        assert (root / "etc" / "other").read_text() == "same"
        assert (root / "etc" / "added").samefile(root / "etc" / "added2")
        assert os.getxattr(root / "etc" / "added", "user.a") == b"b"
        info = (root / "bin" / "tool").stat()
        assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o4711, 7, 8)
        assert not (root / "gone").exists()
        assert os.listdir(root / "cache") == ["fresh"]
        assert (root / "run" / "link").readlink() == Path("../etc")
        assert (root / "etc" / "hosts").read_text() == "127.0.0.1 localhost\n"
        assert (root / "secret").is_mount()
    assert (new.base / "lower" / "gone").exists()


def test_volume_comes_back(fakes, tmp_path: Path):
    old = fakes("old", CHANGES)
    rootfs.capture_volume(old.container, old.part, old.view, tmp_path / "volume")
    new = fakes("new", "open('/data/stale', 'w').close()")
    assert rootfs.apply_volume(new.container, new.part, new.view, tmp_path / "volume") == 3
    assert sorted(os.listdir(new.base / "volume")) == ["dir", "file"]
    assert (new.base / "volume" / "file").read_text() == "in the volume"
    assert (new.base / "volume" / "dir").stat().st_mode & 0o777 == 0o700


def test_moved_mount_point_is_refused(fakes, tmp_path: Path):
    """The path of the volume now leads into the root file system, or through a link."""
    old = fakes("old")
    part = VolumePart(name="data", sub_path="", mount_path="/etc")
    with pytest.raises(Refused, match="not mounted"):
        rootfs.capture_volume(old.container, part, old.view, tmp_path / "a")
    (old.base / "upper" / "elsewhere").symlink_to("/")
    with pytest.raises(Refused, match="not mounted"):
        rootfs.capture_volume(
            old.container,
            VolumePart(name="data", sub_path="", mount_path="/elsewhere/etc"),
            old.view,
            tmp_path / "b",
        )


def test_root_that_is_no_overlay(fakes, tmp_path: Path):
    old = fakes("old")
    mounts = [mount for mount in old.view.mounts(os.getpid()) if mount.mount_point == "/"]
    container = Container(
        name="app", container_id="c", image="", image_id="", init_pid=old.process.pid, pids=(),
        cgroup=old.base, mounts=tuple(mounts), volumes=(),
    )  # fmt: skip
    with pytest.raises(Refused, match="cannot be found"):
        rootfs.capture_root(container, old.view, tmp_path / "a")


def test_device_in_the_root_is_refused(fakes, tmp_path: Path):
    old = fakes("old", "import os; os.mknod('/etc/dev', 0o20666, os.makedev(1, 3))")
    with pytest.raises(Refused, match="device node"):
        rootfs.capture_root(old.container, old.view, tmp_path / "a")


def test_marks(fakes):
    fake = fakes("a")
    rootfs.write_mark(fake.container, fake.view, "restored", "")
    rootfs.write_mark(fake.container, fake.view, "give-up", "why\n")
    rootfs.write_mark(fake.container, fake.view, "give-up", "why\n")
    assert (fake.root / ".torpor" / "give-up").read_text() == "why\n"
    assert (fake.root / ".torpor" / "restored").stat().st_mode & 0o777 == 0o444
    assert sorted(os.listdir(fake.root / ".torpor")) == ["give-up", "restored"]


def test_data_links(fakes):
    fake = fakes("a")
    assert rootfs.data_links(fake.container, fake.view) == {"/secret": "..2025_1"}
    assert rootfs.path_map({"/secret": "..2024_7", "/x": "..1"}, {"/secret": "..2025_1"}) == {
        "/secret/..2024_7": "/secret/..2025_1"
    }


def test_container_gone(fakes, tmp_path: Path):
    fake = fakes("a")
    container = fake.container
    fake.close()
    with pytest.raises(Vanished, match="gone"):
        rootfs.capture_root(container, fake.view, tmp_path / "a")

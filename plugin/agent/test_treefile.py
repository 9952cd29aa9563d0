# SPDX-License-Identifier: Apache-2.0
"""Archives of trees: round trips into plain directories, and hostile ones."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.engine.errors import BadImage, Refused
from torpor.plugin.agent.pack import Packer
from torpor.plugin.agent.treefile import DATA, ENTRIES, Writer, read_entries
from torpor.plugin.agent.unpack import Unpacker


def pack(tree: Path, archive: Path) -> list[str]:
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        with Writer(archive) as writer:
            packer = Packer(root=root, writer=writer, subject="tree")
            packer.run()
            return packer.notes
    finally:
        os.close(root)


def unpack(archive: Path, tree: Path, mounts: frozenset[str] = frozenset()) -> int:
    tree.mkdir(exist_ok=True)
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        return Unpacker(root=root, archive=archive, mounts=mounts).run()
    finally:
        os.close(root)


def describe(tree: Path) -> dict[str, tuple]:
    """All that should come back."""
    found = {}
    inodes: dict[int, str] = {}
    for path in sorted([tree, *tree.rglob("*")]):
        info = path.lstat()
        name = str(path.relative_to(tree))
        content = (
            str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        xattrs = (
            {} if path.is_symlink() else {key: os.getxattr(path, key) for key in os.listxattr(path)}
        )
        first = inodes.setdefault(info.st_ino, name)
        found[name] = (
            info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, content, xattrs, first,
        )  # fmt: skip
    return found


def make_tree(tree: Path) -> None:
    (tree / "d" / "deep").mkdir(parents=True)
    (tree / "d" / "file").write_bytes(b"content\n" * 1000)
    (tree / "d" / "file").chmod(0o640)
    (tree / "d" / "deep" / "again").hardlink_to(tree / "d" / "file")
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "dangling").symlink_to("../../nowhere")
    os.mkfifo(tree / "fifo", 0o620)
    (tree / "empty").mkdir(mode=0o1777)
    (tree / "empty").chmod(0o1777)
    (tree / os.fsdecode(b"odd \xff\n name")).write_bytes(b"")
    os.utime(tree / "d" / "file", ns=(5, 1_234_567_890_123_456_789))
    os.utime(tree / "link", ns=(7, 8), follow_symlinks=False)
    os.utime(tree / "d", ns=(1, 2))
    if os.geteuid() == 0:
        (tree / "tool").write_bytes(b"#!")
        os.chown(tree / "tool", 1000, 1001)
        os.chown(tree / "link", 1002, 1003, follow_symlinks=False)
        (tree / "tool").chmod(0o6755)
        os.setxattr(tree / "tool", "user.note", b"\0x")
        capability = bytes.fromhex("0000000200040000000000000000000000000000")
        os.setxattr(tree / "tool", "security.capability", capability)


def test_round_trip_and_again(tmp_path: Path):
    make_tree(tmp_path / "a")
    pack(tmp_path / "a", tmp_path / "archive")
    before = describe(tmp_path / "a")
    count = unpack(tmp_path / "archive", tmp_path / "b")
    assert describe(tmp_path / "b") == before
    assert count == len(before)
    assert unpack(tmp_path / "archive", tmp_path / "b") == count
    assert describe(tmp_path / "b") == before


def test_unpack_replaces_what_is_in_the_way(tmp_path: Path):
    make_tree(tmp_path / "a")
    pack(tmp_path / "a", tmp_path / "archive")
    (tmp_path / "b" / "link" / "sub").mkdir(parents=True)
    (tmp_path / "b" / "link" / "sub" / "f").write_text("x")
    (tmp_path / "b" / "d").write_text("a file")
    (tmp_path / "b" / "gone" / "x").mkdir(parents=True)
    (tmp_path / "b" / "kept" / "mounted").mkdir(parents=True)
    unpack(tmp_path / "archive", tmp_path / "b", frozenset({"kept/mounted"}))
    (tmp_path / "b" / "kept" / "mounted").rmdir()
    (tmp_path / "b" / "kept").rmdir()
    os.utime(tmp_path / "b", ns=(0, (tmp_path / "a").stat().st_mtime_ns))
    assert describe(tmp_path / "b") == describe(tmp_path / "a")


def test_mounted_places_are_left_alone(tmp_path: Path):
    make_tree(tmp_path / "a")
    pack(tmp_path / "a", tmp_path / "archive")
    (tmp_path / "b" / "d").mkdir(parents=True)
    (tmp_path / "b" / "d" / "secret").write_text("theirs")
    unpack(tmp_path / "archive", tmp_path / "b", frozenset({"d"}))
    assert os.listdir(tmp_path / "b" / "d") == ["secret"]


def test_holes(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"middle")
    pack(tmp_path / "a", tmp_path / "archive")
    assert (tmp_path / "archive" / DATA).stat().st_blocks * 512 < 1 << 20
    unpack(tmp_path / "archive", tmp_path / "b")
    info = (tmp_path / "b" / "sparse").stat()
    assert info.st_size == 1 << 30
    assert info.st_blocks * 512 < 1 << 20
    with (tmp_path / "b" / "sparse").open("rb") as file:
        file.seek(1 << 29)
        assert file.read(7) == b"middle\0"


def test_big_files_begin_at_a_chunk(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0").write_bytes(b"small")
    (tmp_path / "a" / "1").write_bytes(os.urandom(5 << 20))
    pack(tmp_path / "a", tmp_path / "archive")
    entries = {entry.path: entry for entry in read_entries(tmp_path / "archive")}
    assert entries["1"].extents[0].position % (4 << 20) == 0


def test_socket_is_left_out_with_a_note(tmp_path: Path):
    import socket

    (tmp_path / "a").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "a" / "s"))
        notes = pack(tmp_path / "a", tmp_path / "archive")
    assert "socket s" in notes[0]
    unpack(tmp_path / "archive", tmp_path / "b")
    assert os.listdir(tmp_path / "b") == []


@pytest.mark.root
def test_device_is_refused(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("mknod needs root")
    (tmp_path / "a").mkdir()
    os.mknod(tmp_path / "a" / "null", 0o20666, os.makedev(1, 3))
    with pytest.raises(Refused, match="device node"):
        pack(tmp_path / "a", tmp_path / "archive")


names = st.binary(min_size=1, max_size=6).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=50), max_size=6))
def test_any_names(files):
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        (tmp / "a").mkdir()
        for key, data in files.items():
            (tmp / "a" / os.fsdecode(key)).write_bytes(data)
        pack(tmp / "a", tmp / "archive")
        unpack(tmp / "archive", tmp / "b")
        assert describe(tmp / "b") == describe(tmp / "a")


# ---- hostile ------------------------------------------------------------------------------


def record(path, kind, **more):
    base = {"path": path, "type": kind, "mode": 0o644, "uid": 0, "gid": 0, "atime": 0, "mtime": 0}
    return base | more


ROOT = record(".", "directory", mode=0o755)
D = record("d", "directory", mode=0o755)
HOSTILE = {
    "dots": [ROOT, record("..", "directory")],
    "dots inside": [ROOT, D, record("d/../../x", "file", size=0, extents=[])],
    "absolute": [ROOT, record("/tmp/x", "file", size=0, extents=[])],
    "empty part": [ROOT, D, record("d//x", "file", size=0, extents=[])],
    "nul": [ROOT, record("a\0b", "file", size=0, extents=[])],
    "device": [ROOT, record("null", "device")],
    "below a link": [ROOT, record("l", "symlink", target="/"), record("l/x", "file")],
    "link then directory": [ROOT, record("l", "symlink", target="/"), record("l", "directory")],
    "twice": [ROOT, D, D],
    "no parent": [ROOT, record("d/x", "file", size=0, extents=[])],
    "hard link outside": [ROOT, record("h", "hardlink", target="/etc/shadow")],
    "hard link dots": [ROOT, record("h", "hardlink", target="../x")],
    "hard link to a link": [
        ROOT,
        record("l", "symlink", target="/etc/shadow"),
        record("h", "hardlink", target="l"),
    ],
    "names lead out": [ROOT | {"names": ["../x"]}],
    "names dots": [ROOT | {"names": [".."]}],
    "extent outside the data": [ROOT, record("f", "file", size=99, extents=[[0, 99, 0]])],
    "extent outside the file": [ROOT, record("f", "file", size=1, extents=[[0, 2, 0]])],
    "extents overlap": [ROOT, record("f", "file", size=4, extents=[[0, 2, 0], [1, 2, 0]])],
    "negative": [ROOT, record("f", "file", size=-1, extents=[])],
    "mode": [ROOT, record("f", "file", size=0, extents=[], mode=0o100644)],
    "owner": [ROOT, record("f", "file", size=0, extents=[], uid=(1 << 32) - 1)],
    "xattr": [ROOT, record("f", "file", xattrs={"trusted.overlay.opaque": "eQ=="})],
    "root is a link": [record(".", "symlink", target="/")],
    "huge time": [ROOT, record("f", "file", mtime=1 << 80)],
    "no object": [ROOT, ["path"]],
    "a number": [ROOT, 7],
}


def write_archive(directory: Path, records, data: bytes = b"1234") -> None:
    directory.mkdir()
    (directory / ENTRIES).write_text("".join(json.dumps(each) + "\n" for each in records))
    (directory / DATA).write_bytes(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_write_nothing(tmp_path: Path, name: str):
    write_archive(tmp_path / "archive", [*HOSTILE[name]])
    with pytest.raises(BadImage):
        unpack(tmp_path / "archive", tmp_path / "b")
    assert os.listdir(tmp_path / "b") == []
    assert sorted(os.listdir(tmp_path)) == ["archive", "b"]


def test_links_in_the_target_are_not_followed(tmp_path: Path):
    """The tree that is written into may have been prepared by somebody."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "d").symlink_to(tmp_path / "outside")
    (tmp_path / "b" / "f").symlink_to(tmp_path / "outside" / "f")
    file = {"size": 4, "extents": [[0, 4, 0]]}
    records = [ROOT, D, record("d/x", "file", **file), record("f", "file", **file)]
    write_archive(tmp_path / "archive", records)
    unpack(tmp_path / "archive", tmp_path / "b")
    assert os.listdir(tmp_path / "outside") == []
    assert (tmp_path / "b" / "d" / "x").read_bytes() == b"1234"
    assert not (tmp_path / "b" / "f").is_symlink()


def test_removal_does_not_follow_links(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").symlink_to(tmp_path / "outside")
    write_archive(tmp_path / "archive", [ROOT | {"names": []}])
    unpack(tmp_path / "archive", tmp_path / "b")
    assert os.listdir(tmp_path / "b") == []
    assert os.listdir(tmp_path / "outside") == ["precious"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flipped_bytes_stay_inside(data):
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        file = record("d/f", "file", size=4, extents=[[0, 4, 0]])
        write_archive(
            tmp / "archive",
            [ROOT | {"names": ["d", "l"]}, D, file, record("l", "symlink", target="/etc")],
        )
        text = bytearray((tmp / "archive" / ENTRIES).read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(text) - 1))
            text[at] = data.draw(st.sampled_from(b'./\\u0"[]{},:dfl\n') | st.integers(0, 255))
        (tmp / "archive" / ENTRIES).write_bytes(bytes(text))
        (tmp / "b").mkdir()
        try:
            unpack(tmp / "archive", tmp / "b")
        except BadImage:
            assert os.listdir(tmp / "b") == []
        assert sorted(os.listdir(tmp)) == ["archive", "b"]

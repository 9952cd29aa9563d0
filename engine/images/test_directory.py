# SPDX-License-Identifier: Apache-2.0
"""Image directories: whole or absent, and not to be tricked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.engine.errors import BadImage, Bug, Denied, KernelError, Refused
from torpor.engine.images import manifest
from torpor.engine.images.directory import INCOMPLETE, ImageDirectory, Verify
from torpor.engine.images.failures import translated
from torpor.engine.images.inventory import read_inventory, write_inventory
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.source import MEMBERS, Source
from torpor.engine.images.stats import DumpStats, RestoreStats, read_dump_stats, write_stats
from torpor.engine.images.writing import NewImageDirectory

IDS = pb.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1)
FOWN = pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)


def fill(new: NewImageDirectory) -> None:
    write_inventory(new, root_ids=IDS)
    new.add("pstree", pb.pstree_entry(pid=1, ppid=0, pgid=1, sid=1, threads=[1]))
    new.add("pipes-data", pb.pipe_data_entry(pipe_id=1, bytes=3), b"abc")
    new.extra("pipe", "1", {"packet": True})
    fd = new.create_file("pages-1")
    os.write(fd, b"\1" * 4096)
    os.close(fd)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    with NewImageDirectory.create(tmp_path / "images") as new:
        fill(new)
        return new.finish()


def test_written_directory_is_read_back(images: Path):
    with ImageDirectory.open(images) as opened:
        assert opened.names == ("inventory", "pages-1", "pipes-data", "pstree")
        assert read_inventory(opened).img_version == 2
        assert opened.message("pstree", pb.pstree_entry).threads == [1]
        source = Source(opened)
        assert [payload for _, payload in source.entries("pipes-data")] == [b"abc"]
        assert list(source.entries("fifo-data")) == []
        assert source.extra("pipe", "1") == {"packet": True}
        assert source.extra("pipe", "2") is None
        assert "core-1" not in opened
    assert images.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in images.iterdir()} == {0o600}
    assert not images.with_name("images.incomplete").exists()


def dump(path: Path, run: str, text: str, *, replace: bool = False, elsewhere: bool = False):
    """A directory with a task, whose name is ``text``."""
    with NewImageDirectory.create(path, replace=replace) as new:
        write_inventory(new, root_ids=IDS, run_id=run)
        new.extra("dump", "run_id", run)
        new.add("pstree", pb.pstree_entry(pid=1, ppid=0, pgid=1, sid=1, threads=[1]))
        task = pb.task_core_entry(
            task_state=1,
            exit_code=0,
            personality=0,
            flags=0,
            blk_sigset=0,
            comm=text.encode(),
        )
        new.add("core-1", pb.core_entry(mtype=pb.core_entry.X86_64, tc=task))
        if elsewhere:
            new.pages_elsewhere()
        return new.finish()


def test_a_manifest_of_an_earlier_dump_is_left_aside(tmp_path: Path):
    ours, theirs = (dump(tmp_path / name, name, name) for name in ("ours", "theirs"))
    shutil.copy(theirs / "inventory.img", ours)
    with pytest.raises(BadImage, match=r"inventory\.img"), ImageDirectory.open(ours):
        pass
    shutil.copy(theirs / "core-1.img", ours)
    with ImageDirectory.open(ours) as images:
        assert images.manifest is None
        assert images.facts == {}


def test_a_damaged_task_is_not_taken_for_another_dump(tmp_path: Path):
    ours, theirs = (dump(tmp_path / name, name, name) for name in ("ours", "theirs"))
    shutil.copy(theirs / "core-1.img", ours)
    with pytest.raises(BadImage, match=r"core-1\.img"), ImageDirectory.open(ours):
        pass


def test_pages_of_a_server_stay_where_images_are_replaced(tmp_path: Path):
    path = dump(tmp_path / "images", "first", "a")
    (path / "pages-65537.img").write_bytes(b"")
    dump(path, "second", "b", replace=True, elsewhere=True)
    assert (path / "pages-65537.img").exists()
    dump(path, "third", "c", replace=True)
    assert not (path / "pages-65537.img").exists()


def test_nothing_appears_before_finish(tmp_path: Path):
    target = tmp_path / "images"
    with NewImageDirectory.create(target) as new:
        fill(new)
        assert not target.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_callers_directory_is_marked_until_finish(tmp_path: Path):
    (tmp_path / "descriptors.json").write_text("[]")
    with NewImageDirectory.create(tmp_path) as new:
        fill(new)
        with pytest.raises(BadImage, match="not ended"):
            ImageDirectory.open(tmp_path)
        new.finish(durable=False)
    with ImageDirectory.open(tmp_path) as opened:
        assert "pstree" in opened
        assert "descriptors" not in opened
    assert (tmp_path / "descriptors.json").exists()
    assert not (tmp_path / INCOMPLETE).exists()


def test_abort_leaves_the_callers_directory_as_it_was(tmp_path: Path):
    (tmp_path / "descriptors.json").write_text("[]")
    with NewImageDirectory.create(tmp_path) as new:
        fill(new)
    assert [file.name for file in tmp_path.iterdir()] == ["descriptors.json"]


def test_images_are_not_overwritten_unless_asked(images: Path):
    with pytest.raises(Refused):
        NewImageDirectory.create(images)
    with NewImageDirectory.create(images, replace=True) as new:
        write_inventory(new, root_ids=IDS)
        new.finish()
    with ImageDirectory.open(images) as opened:
        assert opened.names == ("inventory",)


@pytest.mark.parametrize("exists", [False, True])
def test_what_a_killed_dump_left_is_cleared(tmp_path: Path, exists: bool):
    target = tmp_path / "images"
    if exists:
        target.mkdir()
    killed = (
        "import os, sys\nfrom pathlib import Path\n"
        "from torpor.engine.images.writing import NewImageDirectory as New\n"
        "new = New.create(Path(sys.argv[1])); os.close(new.create_file('pages-7'))\n"
        "os.kill(os.getpid(), 9)"
    )
    search = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", killed, str(target)], env={"PYTHONPATH": search}, check=False
    )
    assert done.returncode == -9
    with pytest.raises((BadImage, KernelError)):
        ImageDirectory.open(target)
    with NewImageDirectory.create(target) as new:
        fill(new)
        new.finish()
    with ImageDirectory.open(target) as opened:
        assert "pages-7" not in opened


def test_two_dumps_into_one_place(tmp_path: Path):
    for target in (tmp_path / "new", tmp_path):
        with NewImageDirectory.create(target), pytest.raises(Refused, match="another dump"):
            NewImageDirectory.create(target)


@pytest.mark.parametrize("name", ["pstree.img", "pages-1.img", "inventory.img", "pipes-data.img"])
def test_every_flipped_bit_is_noticed(images: Path, name: str):
    good = (images / name).read_bytes()
    for place in range(0, len(good), max(1, len(good) // 16)):
        (images / name).write_bytes(
            good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :]
        )
        with pytest.raises(BadImage) as caught:
            ImageDirectory.open(images)
        assert caught.value.subject.startswith(name)
    (images / name).write_bytes(good[:-1])
    with pytest.raises(BadImage, match=name):
        ImageDirectory.open(images, verify=Verify.WITHOUT_PAGES)


def test_every_flipped_bit_of_our_own_file_is_noticed(images: Path):
    file = images / manifest.NAME
    good = file.read_bytes()
    for place in range(len(good)):
        flipped = good[:place] + bytes([good[place] ^ 1 << place % 7]) + good[place + 1 :]
        if flipped.split() == good.split():  # one blank for another
            continue
        file.write_bytes(flipped)
        with pytest.raises(BadImage, match=manifest.NAME):
            ImageDirectory.open(images)


def test_verification_can_be_left_out(images: Path):
    (images / "pages-1.img").write_bytes(b"\2" * 4096)
    ImageDirectory.open(images, verify=Verify.WITHOUT_PAGES).close()
    (images / "pstree.img").write_bytes(b"")
    ImageDirectory.open(images, verify=Verify.NOTHING).close()


def test_missing_and_extra_files(images: Path):
    (images / "core-1.img").write_bytes(b"")
    with pytest.raises(BadImage, match=r"core-1\.img: is not listed"):
        ImageDirectory.open(images)
    (images / "core-1.img").unlink()
    (images / "pstree.img").unlink()
    with pytest.raises(BadImage, match=r"pstree\.img: is missing"):
        ImageDirectory.open(images)


def test_links_and_fifos_are_not_opened(images: Path, tmp_path: Path):
    (tmp_path / "secret").write_bytes((images / "pstree.img").read_bytes())
    (images / manifest.NAME).unlink()
    (images / "pstree.img").unlink()
    for make in (
        lambda: (images / "pstree.img").symlink_to(tmp_path / "secret"),
        lambda: os.mkfifo(images / "pstree.img"),
        (images / "pstree.img").mkdir,
    ):
        make()
        with ImageDirectory.open(images) as opened, pytest.raises(BadImage, match="regular file"):
            opened.open_file("pstree")
        place = images / "pstree.img"
        place.rmdir() if place.is_dir() else place.unlink()


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".", "A", "x\0", "core-1.img/..", "é"])
def test_names_are_fixed(images: Path, name: str):
    with ImageDirectory.open(images) as opened, pytest.raises(Bug):
        opened.open_file(name)
    with NewImageDirectory.create(images, replace=True) as new, pytest.raises(Bug):
        new.create_file(name)


def test_criu_directories_have_no_manifest(images: Path):
    (images / manifest.NAME).unlink()
    with ImageDirectory.open(images) as opened:
        assert opened.manifest is None
        assert opened.facts == {}


def test_not_an_image_directory(tmp_path: Path):
    with pytest.raises(BadImage, match=r"inventory\.img"):
        ImageDirectory.open(tmp_path)
    with pytest.raises(KernelError, match="ENOENT"):
        ImageDirectory.open(tmp_path / "nowhere")
    with pytest.raises(KernelError, match="ENOENT"):
        NewImageDirectory.create(tmp_path / "no" / "where")
    with pytest.raises(Denied), translated("open", "x"):
        raise PermissionError(13, "no")


def test_an_inventory_is_a_must(tmp_path: Path):
    with NewImageDirectory.create(tmp_path / "x") as new, pytest.raises(Bug, match="inventory"):
        new.finish()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 3}, "newer torpor"),
        ({"version": "1"}, "no version"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "not an image's"),
        ({"files": {"x.img": {"bytes": "1", "sha256": "0" * 64}}}, "malformed"),
        ({"files": []}, "no list"),
        ({"facts": {"a": 1}}, "facts"),
    ],
)
def test_hostile_manifests(change: dict, what: str):
    document = {"version": 1, "facts": {}, "files": {}} | change
    document["digest"] = manifest._digest(document)
    with pytest.raises(BadImage, match=what):
        manifest.decode(json.dumps(document).encode())


@pytest.mark.parametrize(
    "number", [str(1 << 64), str(-(1 << 63) - 1), "9" * 5000, "NaN", "-Infinity"]
)
def test_numbers_that_no_kernel_has(number: str):
    with pytest.raises(BadImage, match="not JSON"):
        manifest.decode(f'{{"version": 2, "facts": {{"a": {{"b": {number}}}}}}}'.encode())


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'"x"'])
def test_manifests_that_are_none(text: bytes):
    with pytest.raises(BadImage):
        manifest.decode(text)


def test_inventory_of_another_version(tmp_path: Path):
    for version, remedy in ((1, "dump again"), (3, "newer torpor")):
        with NewImageDirectory.create(tmp_path / "x", replace=True) as new:
            new.add("inventory", pb.inventory_entry(img_version=version))
            new.finish(durable=False)
        with ImageDirectory.open(tmp_path / "x") as opened, pytest.raises(BadImage, match=remedy):
            read_inventory(opened)


def files_of(tmp_path: Path, *entries: pb.file_entry) -> Source:
    with NewImageDirectory.create(tmp_path / "x", replace=True) as new:
        write_inventory(new, root_ids=IDS, tcp_close=True)
        new.write("files", entries)
        new.finish(durable=False)
    return Source(ImageDirectory.open(tmp_path / "x"))


def test_files_by_type(tmp_path: Path):
    event = pb.eventfd_file_entry(id=5, flags=0, fown=FOWN, counter=7)
    source = files_of(tmp_path, pb.file_entry(type=pb.EVENTFD, id=5, efd=event))
    assert source.file_types() == ("EVENTFD",)
    assert source.files("EVENTFD") == [(5, event)]
    assert source.files("PIPE") == []


def test_a_tun_has_two_entries_of_one_id(tmp_path: Path):
    opened = pb.reg_file_entry(id=5, flags=2, pos=0, fown=FOWN, name=b"/dev/net/tun")
    one = pb.file_entry(type=pb.REG, id=5, reg=opened)
    other = pb.file_entry(type=pb.TUNF, id=5, tunf=pb.tunfile_entry(id=5))
    assert files_of(tmp_path, one, other).file_types() == ("REG", "TUNF")
    for number, entries in enumerate(([one, other, one], [other, one, other])):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(BadImage, match="twice"):
            files_of(tmp_path / str(number), *entries).files("REG")


def test_files_that_contradict_themselves(tmp_path: Path):
    event = pb.eventfd_file_entry(id=5, flags=0, fown=FOWN, counter=7)
    good = pb.file_entry(type=pb.EVENTFD, id=5, efd=event)
    for entries, what in (
        ([pb.file_entry(type=pb.PIPE, id=5, efd=event)], "its part is missing"),
        ([pb.file_entry(type=pb.EVENTFD, id=6, efd=event)], "calls itself 5"),
        ([good, good], "twice"),
    ):
        with pytest.raises(BadImage, match=what):
            files_of(tmp_path, *entries).files("EVENTFD")


def test_every_file_type_has_a_member():
    special = {"UND", "CTL_TTY", "AUTOFS_PIPE"}
    assert set(MEMBERS) == set(pb.fd_types.keys()) - special
    fields = {field.name for field in pb.file_entry.DESCRIPTOR.fields} - {"type", "id"}
    assert set(MEMBERS.values()) == fields


def test_stats_are_no_part_of_the_dump(images: Path):
    with ImageDirectory.open(images) as opened:
        assert read_dump_stats(opened) is None
    stats = DumpStats(frozen_s=0.25, pages_written=7, memory_dump_s=1e9)
    write_stats(images, stats)
    write_stats(images, RestoreStats(restore_s=0.5))
    with ImageDirectory.open(images) as opened:
        found = read_dump_stats(opened)
        assert (found.frozen_s, found.pages_written) == (0.25, 7)
        assert found.memory_dump_s == (2**32 - 1) / 1e6
        assert opened.message("stats-restore", pb.stats_entry).restore.restore_time == 500_000

# SPDX-License-Identifier: Apache-2.0
"""The volume store: round trips, damage, a full or lost disk, a killed put, sweeps."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.engine.errors import BadImage, Refused, Timeout, Vanished
from torpor.engine.options import Progress, no_progress
from torpor.plugin.store.base import Cancel, Precedence, SourceTree, StoreFailed
from torpor.plugin.store.chunks import CHUNK_BYTES
from torpor.plugin.store.manifest import CheckpointRef, Head, NodeFacts
from torpor.plugin.store.volume import VolumeStore

REF = CheckpointRef(namespace="default", name="counter-1", uid="0f0c")
OTHER = CheckpointRef(namespace="default", name="other", uid="0f0d")


def head(ref: CheckpointRef) -> Head:
    node = NodeFacts(name="a", kernel="6", arch="x86_64", cpu_flags_sha256="", engine_version="0")
    return Head(
        ref=ref, pod_name="p", pod_uid="u", created="", node=node, containers=(), pod_template={}
    )


def source(root: Path, files: dict[str, bytes], ref: CheckpointRef = REF) -> SourceTree:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return SourceTree(root=root, head=head(ref))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


BIG = {"images/app/pages-1.img": noise(CHUNK_BYTES * 3 + 17), "images/app/core.img": b"core"}


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    (tmp_path / "store").mkdir()
    return VolumeStore(tmp_path / "store")


def chunk_files(root: Path) -> list[Path]:
    return sorted((root / "v1" / "chunks").glob("??/*.zst"))


def read_tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_round_trip(store: VolumeStore, tmp_path: Path):
    seen: list[Progress] = []
    stored = store.put(REF, source(tmp_path / "in", BIG), seen.append)
    assert stored.size_bytes == sum(map(len, BIG.values()))
    assert stored.stored_bytes > 0
    assert seen[-1].done == seen[-1].total == stored.size_bytes
    assert store.verify(REF, digest=stored.digest) == stored
    assert store.get(REF, tmp_path / "out", digest=stored.digest) == stored
    assert read_tree(tmp_path / "out") == BIG
    assert store.list() == (REF,)
    assert not list((tmp_path / "store" / "v1" / "tmp").iterdir())


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3).map("d/".__add__), st.binary(max_size=64), max_size=5
    )
)
def test_any_tree(files):
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        (tmp / "store").mkdir()
        (tmp / "in").mkdir()
        store = VolumeStore(tmp / "store")
        store.put(REF, source(tmp / "in", files), no_progress)
        store.get(REF, tmp / "out")
        assert read_tree(tmp / "out") == files


def test_holes_stay_holes(store: VolumeStore, tmp_path: Path):
    tree = source(tmp_path / "in", {"a": b"x"})
    with (tmp_path / "in" / "a").open("r+b") as file:
        file.truncate(64 * CHUNK_BYTES)
        file.seek(20 * CHUNK_BYTES)
        file.write(b"y")
    stored = store.put(REF, tree)
    assert stored.stored_bytes < 10_000
    store.get(REF, tmp_path / "out")
    assert (tmp_path / "out" / "a").stat().st_blocks * 512 <= 2 * CHUNK_BYTES
    assert (tmp_path / "out" / "a").read_bytes() == (tmp_path / "in" / "a").read_bytes()


def test_same_data_is_stored_once(store: VolumeStore, tmp_path: Path):
    store.put(REF, source(tmp_path / "in", BIG))
    before = chunk_files(tmp_path / "store")
    store.put(OTHER, source(tmp_path / "in2", BIG, OTHER))
    assert chunk_files(tmp_path / "store") == before


def test_only_regular_files(store: VolumeStore, tmp_path: Path):
    tree = source(tmp_path / "in", BIG)
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    with pytest.raises(Refused):
        store.put(REF, tree)
    assert store.list() == ()


# ---- damage -------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(shutil.which("sh").encode()),
        lambda path: path.write_bytes(zstandard.compress(noise(CHUNK_BYTES, 9))),
        lambda path: path.write_bytes(zstandard.compress(bytes(1 << 28))),
    ],
)
def test_damaged_chunk(store: VolumeStore, tmp_path: Path, damage):
    stored = store.put(REF, source(tmp_path / "in", BIG))
    damage(max(chunk_files(tmp_path / "store"), key=lambda path: path.stat().st_size))
    with pytest.raises(BadImage, match="chunk"):
        store.verify(REF, digest=stored.digest)
    with pytest.raises(BadImage, match="chunk"):
        store.get(REF, tmp_path / "out")
    store.put(REF, source(tmp_path / "in", BIG))  # heals it
    store.verify(REF)


def test_damaged_or_foreign_manifest(store: VolumeStore, tmp_path: Path):
    stored = store.put(REF, source(tmp_path / "in", BIG))
    path = tmp_path / "store" / REF.path / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(BadImage):
        store.verify(REF)
    path.write_bytes(whole.replace(b'"podName":"p"', b'"podName":"q"'))
    with pytest.raises(BadImage, match="not the one"):
        store.verify(REF, digest=stored.digest)
    path.write_bytes(whole.replace(b"counter-1", b"counter-2"))
    with pytest.raises(BadImage, match="another checkpoint"):
        store.get(REF, tmp_path / "out")


def test_missing_checkpoint_and_store(store: VolumeStore, tmp_path: Path):
    with pytest.raises(StoreFailed, match="no store"):
        store.verify(REF)
    store.put(REF, source(tmp_path / "in", BIG))
    with pytest.raises(StoreFailed, match="does not hold"):
        store.get(OTHER, tmp_path / "out")
    with pytest.raises(StoreFailed, match="not there"):
        VolumeStore(tmp_path / "absent").put(REF, source(tmp_path / "in", BIG))


@pytest.mark.parametrize("late", ["images/", "nothing"])
def test_late_files_come_last(store: VolumeStore, tmp_path: Path, late: str):
    files = BIG | {"large": noise(CHUNK_BYTES * 2, 3), "empty": b""}
    store.put(REF, source(tmp_path / "in", files))
    early = {name for name in files if not name.startswith(late)}
    seen = []

    def when_early(manifest):
        assert {entry.path for entry in manifest.files} == files.keys()
        there = read_tree(tmp_path / "out")
        assert {name: there[name] for name in early} == {name: files[name] for name in early}
        seen.append(len(there))

    order = Precedence(is_late=lambda path: path.startswith(late), when_early=when_early)
    store.get(REF, tmp_path / "out", precedence=order)
    assert len(seen) == 1
    assert read_tree(tmp_path / "out") == files


def test_get_wants_an_empty_directory(store: VolumeStore, tmp_path: Path):
    store.put(REF, source(tmp_path / "in", BIG))
    with pytest.raises(Refused):
        store.get(REF, tmp_path / "in")


# ---- faults -------------------------------------------------------------------------------


def test_store_gone_half_way(store: VolumeStore, tmp_path: Path):
    def take_away(progress: Progress) -> None:
        if progress.done > CHUNK_BYTES and (tmp_path / "store").exists():
            (tmp_path / "store").rename(tmp_path / "elsewhere")

    with pytest.raises(StoreFailed):
        store.put(REF, source(tmp_path / "in", BIG), take_away)
    assert not list(tmp_path.rglob("manifest.json"))


def test_another_directory_in_its_place(store: VolumeStore, tmp_path: Path):
    """As when a volume is unmounted and the mount point shows through."""

    def swap(progress: Progress) -> None:
        if progress.done == progress.total:
            (tmp_path / "store").rename(tmp_path / "elsewhere")
            shutil.copytree(tmp_path / "elsewhere", tmp_path / "store")

    with pytest.raises(StoreFailed, match="taken away"):
        store.put(REF, source(tmp_path / "in", BIG), swap)
    assert not list(tmp_path.rglob("manifest.json"))


def test_called_off(store: VolumeStore, tmp_path: Path):
    cancel = Cancel()
    with pytest.raises(Vanished):
        store.put(REF, source(tmp_path / "in", BIG), lambda _: cancel.set(), cancel=cancel)
    assert store.list() == ()


def test_killed_put_is_resumed(store: VolumeStore, tmp_path: Path):
    files = {"pages": noise(CHUNK_BYTES * 24)}
    tree = source(tmp_path / "in", files)
    code = (
        "import pathlib\n"
        "from torpor.plugin.store.volume import VolumeStore\n"
        "from torpor.plugin.store.base import SourceTree\n"
        "from torpor.plugin.store.manifest import *\n"
        "node=NodeFacts(name='a',kernel='6',arch='x86_64',cpu_flags_sha256='',engine_version='0')\n"
        f"ref={REF!r}\n"
        "head=Head(ref=ref,pod_name='p',pod_uid='u',created='',node=node,containers=(),"
        "pod_template={})\n"
        f"tmp=pathlib.Path({str(tmp_path)!r})\n"
        "VolumeStore(tmp/'store').put(ref,SourceTree(root=tmp/'in',head=head))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while len(chunk_files(tmp_path / "store")) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert store.list() == ()
    kept = {path: path.stat().st_ino for path in chunk_files(tmp_path / "store")}
    assert kept
    store.put(REF, tree)
    assert all(path.stat().st_ino == inode for path, inode in kept.items())
    store.get(REF, tmp_path / "out")
    assert read_tree(tmp_path / "out") == files
    impatient = VolumeStore(tmp_path / "store", grace_s=-1)
    impatient.sweep()
    assert not list((tmp_path / "store" / "v1" / "tmp").iterdir())
    store.verify(REF)


@pytest.fixture
def small_disk(tmp_path: Path):
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.root
def test_full_disk(small_disk: Path, tmp_path: Path):
    store = VolumeStore(small_disk)
    with pytest.raises(StoreFailed, match="no space") as caught:
        store.put(REF, source(tmp_path / "in", BIG))
    assert "enlarge" in caught.value.remedy
    assert store.list() == ()
    assert not list((small_disk / "v1" / "tmp").iterdir())
    store.put(OTHER, source(tmp_path / "in2", {"a": b"fits"}, OTHER))
    store.verify(OTHER)


@pytest.mark.root
def test_read_only_disk(small_disk: Path, tmp_path: Path):
    store = VolumeStore(small_disk)
    stored = store.put(REF, source(tmp_path / "in", {"a": b"fits"}))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreFailed, match="may not be written") as caught:
        store.put(OTHER, source(tmp_path / "in2", BIG, OTHER))
    assert "EROFS" in caught.value.cause
    assert store.verify(REF) == stored


@pytest.mark.root
def test_full_target_of_get(store: VolumeStore, small_disk: Path, tmp_path: Path):
    store.put(REF, source(tmp_path / "in", BIG))
    with pytest.raises(StoreFailed, match="no space"):
        store.get(REF, small_disk / "out")


# ---- delete and sweep ---------------------------------------------------------------------


def test_delete_keeps_what_others_use(store: VolumeStore, tmp_path: Path):
    store.put(REF, source(tmp_path / "in", BIG | {"mine": noise(99, 2)}))
    store.put(OTHER, source(tmp_path / "in2", BIG, OTHER))
    before = len(chunk_files(tmp_path / "store"))
    assert store.delete(REF) > 0
    assert len(chunk_files(tmp_path / "store")) == before - 1
    store.verify(OTHER)
    assert store.delete(REF) == 0
    store.delete(OTHER)
    assert chunk_files(tmp_path / "store") == []
    assert store.list() == ()


def test_unreadable_manifest_stops_removal(store: VolumeStore, tmp_path: Path):
    store.put(REF, source(tmp_path / "in", BIG))
    store.put(OTHER, source(tmp_path / "in2", {"o": b"o"}, OTHER))
    flip(tmp_path / "store" / OTHER.path / "manifest.json")
    (tmp_path / "store" / OTHER.path / "manifest.json").write_bytes(b"{")
    assert store.delete(REF) == 0
    assert len(chunk_files(tmp_path / "store")) > 2
    assert store.list() == ()


def test_sweep_waits_for_the_grace_period(store: VolumeStore, tmp_path: Path):
    store.put(REF, source(tmp_path / "in", BIG))
    (tmp_path / "store" / REF.path / "manifest.json").unlink()
    assert store.sweep() == 0
    assert VolumeStore(tmp_path / "store", grace_s=-1).sweep() > 0
    assert chunk_files(tmp_path / "store") == []


def test_delete_waits_for_a_put(store: VolumeStore, tmp_path: Path):
    store.put(OTHER, source(tmp_path / "in2", BIG, OTHER))
    impatient = VolumeStore(tmp_path / "store", lock_timeout_s=0.1)
    caught: list[BaseException] = []

    def meanwhile(progress: Progress) -> None:
        if caught:
            return
        try:
            impatient.delete(OTHER)
        except Timeout as error:
            caught.append(error)

    stored = store.put(REF, source(tmp_path / "in", BIG), meanwhile)
    assert caught
    assert store.verify(REF) == stored


def test_puts_and_deletes_together(store: VolumeStore, tmp_path: Path):
    refs = [replace(REF, name=f"c{number}") for number in range(6)]
    trees = [source(tmp_path / ref.name, BIG, ref) for ref in refs]
    store.put(refs[0], trees[0])
    failed: list[BaseException] = []

    def work(ref: CheckpointRef, tree: SourceTree) -> None:
        try:
            store.put(ref, tree)
            store.verify(ref)
            store.delete(ref)
            stored = store.put(ref, tree)
            assert store.verify(ref) == stored
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failed.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(refs, trees, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert set(store.list()) == set(refs)

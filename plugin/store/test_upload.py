# SPDX-License-Identifier: Apache-2.0
"""Files that are stored while they are written: in any steps, begun anew, waited for, given up."""

import os
import random
import threading
from pathlib import Path

import pytest

from torpor.engine.errors import BadImage, Bug, Timeout, Vanished
from torpor.plugin.store import upload as module
from torpor.plugin.store.base import Cancel, SourceTree, StoreFailed
from torpor.plugin.store.chunks import CHUNK_BYTES
from torpor.plugin.store.manifest import CheckpointRef, Head, NodeFacts
from torpor.plugin.store.volume import VolumeStore

REF = CheckpointRef(namespace="default", name="growing", uid="0f0c")
NODE = NodeFacts(name="a", kernel="6", arch="x86_64", cpu_flags_sha256="", engine_version="0")
HEAD = Head(
    ref=REF, pod_name="p", pod_uid="u", created="", node=NODE, containers=(), pod_template={}
)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "in").mkdir()
    return VolumeStore(tmp_path / "store")


class Growing:
    """A file of a tree, written in steps that are told."""

    def __init__(self, upload, tree: Path, name: str = "pages") -> None:
        self.upload, self.name = upload, name
        self.fd = os.open(tree / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def write(self, data: bytes, *, whole: bool = False) -> None:
        os.write(self.fd, data)
        self.upload.grown(self.name, self.fd, os.fstat(self.fd).st_size, whole=whole)
        if whole:
            os.close(self.fd)


def commit(upload, tmp_path):
    return upload.commit(SourceTree(root=tmp_path / "in", head=HEAD))


@pytest.mark.parametrize("step", [1 << 20, CHUNK_BYTES, 3 * CHUNK_BYTES - 1])
def test_in_any_steps(store, tmp_path, step):
    data = random.Random(1).randbytes(3 * CHUNK_BYTES + 4097)
    with store.upload(REF) as upload:
        file = Growing(upload, tmp_path / "in")
        for at in range(0, len(data), step):
            file.write(data[at : at + step])
        file.write(b"", whole=True)
        upload.catch_up()
        assert upload.stored_bytes == len(data)
        assert (tmp_path / "in" / "pages").stat().st_size == len(data)
        assert (tmp_path / "in" / "pages").stat().st_blocks * 512 <= 4096
        (tmp_path / "in" / "other").write_bytes(b"beside")
        stored = commit(upload, tmp_path)
        assert {*stored.manifest.chunks} == upload.verified
    store.verify(REF, digest=stored.digest)
    store.get(REF, tmp_path / "out")
    assert (tmp_path / "out" / "pages").read_bytes() == data
    assert (tmp_path / "out" / "other").read_bytes() == b"beside"


def test_chunks_that_are_known_are_not_read_again(store, tmp_path):
    with store.upload(REF) as upload:
        Growing(upload, tmp_path / "in").write(b"x" * CHUNK_BYTES, whole=True)
        stored = commit(upload, tmp_path)
    for path in (tmp_path / "store" / "v1" / "chunks").glob("??/*.zst"):
        path.write_bytes(b"damaged after it was read back")
    store.verify(REF, known=upload.verified)
    with pytest.raises(BadImage, match="damaged"):
        store.verify(REF, digest=stored.digest)


def test_begun_anew(store, tmp_path):
    """What was told of a first try is void, descriptors are not kept."""
    before = len(os.listdir("/proc/self/fd"))
    with store.upload(REF) as upload:
        Growing(upload, tmp_path / "in").write(b"a" * (2 * CHUNK_BYTES), whole=True)
        half = Growing(upload, tmp_path / "in", "half")
        half.write(b"b" * (CHUNK_BYTES + 1))
        upload.forget("")
        for path in (tmp_path / "in").iterdir():
            path.unlink()
        Growing(upload, tmp_path / "in").write(b"c" * CHUNK_BYTES, whole=True)
        commit(upload, tmp_path)
    os.close(half.fd)
    store.get(REF, tmp_path / "out")
    assert (tmp_path / "out" / "pages").read_bytes() == b"c" * CHUNK_BYTES
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_not_told_whole(store, tmp_path):
    with store.upload(REF) as upload:
        Growing(upload, tmp_path / "in").write(b"a" * CHUNK_BYTES)
        with pytest.raises(Bug, match="changed"):
            commit(upload, tmp_path)
    assert store.list() == ()


@pytest.fixture
def slow(store, monkeypatch):
    """The store takes nothing until the event is set."""
    may_go = threading.Event()
    write = store._chunk_files.write
    monkeypatch.setattr(store._chunk_files, "write", lambda data: may_go.wait() and write(data))
    monkeypatch.setattr(module, "LEAST_WAITING", CHUNK_BYTES)
    monkeypatch.setattr(module, "_free_bytes", lambda _: 0)
    yield may_go
    may_go.set()


def test_a_writer_waits_for_a_slow_store(store, slow, tmp_path):
    told = []

    def write():
        with store.upload(REF) as upload:
            file = Growing(upload, tmp_path / "in")
            for number in range(6):
                file.write(bytes([number]) * CHUNK_BYTES, whole=number == 5)
                told.append(number)
            commit(upload, tmp_path)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(0.3)
    assert told == [0, 1], "as much as may wait, and what is being handed out"
    slow.set()
    thread.join()
    assert told == [*range(6)]
    store.verify(REF)


def test_a_writer_does_not_wait_for_ever(store, slow, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LEAVE_S", 0.1)

    def late():
        raise Timeout("late")

    with (
        pytest.raises(Timeout, match="late"),
        store.upload(REF, cancel=Cancel(also=late)) as upload,
    ):
        Growing(upload, tmp_path / "in").write(b"a" * (8 * CHUNK_BYTES))
    cancel = Cancel()
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(Vanished, match="called off"), store.upload(REF, cancel=cancel) as upload:
        Growing(upload, tmp_path / "in").write(b"a" * (8 * CHUNK_BYTES))


def test_a_store_that_goes_fails_the_writer(store, tmp_path):
    with store.upload(REF) as upload:
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        Growing(upload, tmp_path / "in").write(b"a" * CHUNK_BYTES)
        with pytest.raises(StoreFailed):
            upload.catch_up()

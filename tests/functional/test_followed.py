# SPDX-License-Identifier: Apache-2.0
"""Dumps that go into a store while they are written: what comes out of it is what was dumped."""

import shutil

import pytest

from tests.functional.describe import tree
from tests.functional.test_precopy import pages_in, pages_of, unwatched
from torpor.engine import api
from torpor.engine.errors import BadImage
from torpor.engine.options import After, DumpOptions, MemoryWay, PreCopyRules
from torpor.plugin.agent.following import Following
from torpor.plugin.store.base import SourceTree, StoreFailed
from torpor.plugin.store.manifest import CheckpointRef, Head, NodeFacts
from torpor.plugin.store.volume import VolumeStore

pytestmark = [pytest.mark.functional, pytest.mark.root]
REF = CheckpointRef(namespace="default", name="followed", uid="0f0c")
RULES = PreCopyRules(max_rounds=4, pause_goal_s=0)
FOLDER = "images/app"


def head():
    node = NodeFacts(name="a", kernel="6", arch="x86_64", cpu_flags_sha256="", engine_version="0")
    return Head(
        ref=REF, pod_name="p", pod_uid="u", created="", node=node, containers=(), pod_template={}
    )


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return VolumeStore(tmp_path / "store")


def dump_followed(live, store, after, **options):
    """Dump into the store, take everything else away, and fetch it; gives the stored manifest."""
    staged = live.folder / "staged"
    (staged / "images").mkdir(parents=True)
    live.pids = set(tree(live.pid))
    with store.upload(REF) as upload:
        asked = DumpOptions(
            pid=live.pid,
            images_dir=staged / FOLDER,
            after=after,
            follower=Following(upload=upload, folder=FOLDER),
            **options,
        )
        (live.report,) = api.dump([asked])
        upload.catch_up()
        before = set(upload.verified)
        left = sum(path.stat().st_blocks * 512 for path in staged.rglob("pages-*"))
        stored = upload.commit(SourceTree(root=staged, head=head()))
    live.pids = set(tree(live.pid)) or live.pids
    assert before, "nothing was stored before the dump had ended"
    assert left < 2 << 20, "what is stored lies here no more"
    store.verify(REF, digest=stored.digest)
    shutil.rmtree(staged)
    store.get(REF, live.folder / "back")
    return stored


@pytest.mark.parametrize("way", [MemoryWay.FROZEN, MemoryWay.PRECOPY])
def test_every_byte(start, store, way):
    live = start("memory_restless", "6", "200")
    live.await_file("ready")
    live.mark()
    live.at_rest = dict.fromkeys(live.at_rest, "T")
    dump_followed(live, store, After.PAUSE, memory=way, precopy=RULES)
    images = live.folder / "back" / FOLDER
    pids = [pid for pid in live.pids if (images / f"pagemap-{pid}.img").exists()]
    assert pids
    for pid in pids:
        filed, there = pages_in(images, pid), pages_of(pid)
        assert filed.keys() == there.keys()
        assert not [hex(at) for at in there if there[at] != filed[at]]
        unwatched(pid)
    if way is MemoryWay.PRECOPY:
        assert len(list(images.glob("precopy-*"))) > 1


@pytest.mark.parametrize("way", [MemoryWay.FROZEN, MemoryWay.PRECOPY])
def test_moved(start, store, way):
    live = start("memory_restless", "7", "0")
    live.await_file("ready")
    live.mark()
    dump_followed(live, store, After.STOP, memory=way, precopy=RULES)
    live.reap(live.pids)
    live.restore(f"back/{FOLDER}")
    assert live.verdict() == "ok"


def test_a_round_that_is_missing(start, store):
    live = start("memory_restless", "7", "0")
    live.await_file("ready")
    live.mark()
    dump_followed(live, store, After.STOP, memory=MemoryWay.PRECOPY, precopy=RULES)
    live.reap(live.pids)
    images = live.folder / "back" / FOLDER
    (images / "precopy-1").rename(live.folder / "elsewhere")
    with pytest.raises(BadImage):
        live.restore(f"back/{FOLDER}")
    (images / "precopy-1").symlink_to(live.folder / "elsewhere")
    with pytest.raises(BadImage, match="link"):
        live.restore(f"back/{FOLDER}")
    (images / "precopy-1").unlink()
    (live.folder / "elsewhere").rename(images / "precopy-1")
    live.restore(f"back/{FOLDER}")
    assert live.verdict() == "ok"


@pytest.mark.parametrize("way", [MemoryWay.FROZEN, MemoryWay.PRECOPY])
def test_a_store_that_fails_half_way(start, tmp_path, store, way):
    """The tasks run on, and nothing counts as stored."""
    live = start("memory_restless", "7", "0")
    live.await_file("ready")
    live.mark()
    (tmp_path / "staged").mkdir()
    with store.upload(REF) as upload:

        class Failing(Following):
            def grown(self, name, fd, size_bytes, *, whole=False):
                shutil.rmtree(tmp_path / "store", ignore_errors=True)
                super().grown(name, fd, size_bytes, whole=whole)
                self.catch_up()

        asked = DumpOptions(
            pid=live.pid,
            images_dir=tmp_path / "staged" / "images",
            follower=Failing(upload=upload, folder=FOLDER),
            memory=way,
            precopy=RULES,
        )
        with pytest.raises(StoreFailed):
            api.dump([asked])
    assert not (tmp_path / "staged" / "images").exists()
    live.unharmed()
    unwatched(live.pid)
    assert live.verdict() == "ok"

# SPDX-License-Identifier: Apache-2.0
"""Pre-copy of trees that never rest: every byte, and nothing left of it in the tasks."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.functional.describe import tree
from torpor.engine import api
from torpor.engine.dump.ways import scan
from torpor.engine.errors import Error, Findings
from torpor.engine.images.parents import Chain
from torpor.engine.kernel.maps import parse_smaps
from torpor.engine.memory import areas
from torpor.engine.options import After, DumpOptions, MemoryWay, PreCopyRules, Progress

pytestmark = [pytest.mark.functional, pytest.mark.root]
PAGE = 4096
RULES = PreCopyRules(max_rounds=5)


def smaps(pid):
    return parse_smaps(Path(f"/proc/{pid}/smaps").read_text())


def pages_of(pid):
    """Address → bytes of the pages that a dump of this stopped task has to have."""
    found, _ = areas.collect(smaps(pid), "")
    runs = scan.private_runs(pid, scan.wanted(found))
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        return {
            at + i: os.pread(memory.fileno(), PAGE, at + i)
            for at, size in zip(runs[::2], runs[1::2], strict=True)
            for i in range(0, size, PAGE)
        }


def pages_in(images, pid):
    with Chain.open(images) as chain:
        return {
            one.vaddr + i: os.pread(one.fd, PAGE, one.offset + i)
            for one in chain.stored(f"pagemap-{pid}")
            for i in range(0, one.size_bytes, PAGE)
        }


def unwatched(pid):
    assert not [vma for vma in smaps(pid) if vma.vm_flags & {"uw", "um", "ui"}]
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [link for link in links if "userfaultfd" in link]


def goes_on(live):
    os.killpg(live.pid, signal.SIGCONT)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("pause_us", [0, 200])
def test_every_byte_of_a_paused_tree(start, pause_us, flat):
    """Compared with the memory of the tasks themselves, which were left stopped."""
    live = start("memory_restless", str(pause_us + flat), str(pause_us))
    live.await_file("ready")
    kept = 0
    for number in range(4):
        images = live.folder / f"images{number}"
        options = {"replace": flat, "memory": MemoryWay.PRECOPY, "precopy": RULES}
        live.mark()
        live.at_rest = dict.fromkeys(live.at_rest, "T")
        dump_paused(live, images.name, options)
        for pid in (p for p in live.pids if (images / f"pagemap-{p}.img").exists()):
            filed, there = pages_in(images, pid), pages_of(pid)
            assert filed.keys() == there.keys()
            assert not [hex(at) for at in there if there[at] != filed[at]]
            unwatched(pid)
        assert live.report.memory_way is MemoryWay.PRECOPY
        kept += live.report.rounds[0].copied_bytes
        assert (images / "parent").is_symlink() is not flat
        assert live.report.image_bytes > live.report.memory_bytes
        goes_on(live)
        time.sleep(0.05)
    assert kept > 4 << 20
    assert live.verdict() == "ok"


def dump_paused(live, name, options):
    live.pids = set(tree(live.pid))
    asked = DumpOptions(pid=live.pid, images_dir=live.folder / name, after=After.PAUSE, **options)
    (live.report,) = api.dump([asked])
    live.pids = set(tree(live.pid))


@pytest.mark.parametrize("after", [After.STOP, After.CONTINUE])
@pytest.mark.parametrize("pause_us", [0, 200])
def test_moved(start, pause_us, after):
    live = start("memory_restless", "7", str(pause_us))
    live.await_file("ready")
    for name in ("first", "second"):
        live.mark()
        live.dump(name, after, memory=MemoryWay.PRECOPY, precopy=RULES)
        if after is After.CONTINUE:
            unwatched(live.pid)
            os.killpg(live.pid, signal.SIGKILL)
            live.reap(live.pids)
        live.restore(name)
    assert live.verdict() == "ok"


def counting(live):
    """Pre-copy one that is left running; what was copied in rounds."""
    live.mark()
    live.dump("images", After.CONTINUE, memory=MemoryWay.PRECOPY)
    return sum(one.copied_bytes for one in live.report.rounds)


def test_memory_that_devices_may_write_to_is_left_to_the_last_stop(start, tmp_path):
    """A descriptor opened O_DIRECT: what it fills is seen by no fault."""
    live = start("memory_direct")
    live.await_ready()
    if "lacking" in (live.folder / "ready").read_text():
        pytest.skip("this machine lacks a file system with O_DIRECT")
    assert counting(live) == 0
    assert "O_DIRECT" in live.report.memory_reason
    assert live.verdict() == "ok"


def test_memory_with_a_userfaultfd_of_its_own_is_refused_as_ever(start):
    live = start("memory_refused", "userfaultfd")
    live.await_file("ready")
    with pytest.raises(Findings, match="userfaultfd"):
        counting(live)
    live.unharmed()


def test_a_small_tree_takes_no_rounds(start):
    live = start("core_identity")
    live.await_ready()
    counting(live)
    unwatched(live.pid)
    assert live.verdict() == "ok"


def test_a_filter_that_forbids_userfaultfd_is_suspended(start):
    """By root; who may not, leaves the task to the last stop."""
    live = start("core_seccomp")
    live.await_ready()
    before = live.look()
    counting(live)
    live.same_as(before)
    assert live.verdict() == "ok"


def test_a_full_volume_ends_it_before_the_stop(start, tmp_path):
    live = start("memory_restless", "3", "200")
    live.await_file("ready")
    live.mark()
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", volume], check=True)
    try:
        for after in (After.CONTINUE, After.STOP):
            asked = DumpOptions(
                pid=live.pid, images_dir=volume / "images", after=after, memory=MemoryWay.PRECOPY
            )
            phases: list[Progress] = []
            with pytest.raises(Error, match="No space left"):
                api.dump([asked], progress=phases.append)
            assert "threads" not in [step.phase for step in phases]
            assert not list(volume.iterdir())
            unwatched(live.pid)
    finally:
        subprocess.run(["umount", "-l", volume], check=True)
    assert live.verdict() == "ok"

# SPDX-License-Identifier: Apache-2.0
"""Tracking the writes of a live process from outside."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.engine.kernel import maps, pagemap, proc, ptrace, uffd
from torpor.engine.kernel.remote import AddressSpace, Remote

pytestmark = [pytest.mark.root, pytest.mark.functional]

PAGE = 4096
FLAG = uffd.FLAG
WRITER = Path(__file__).parent / "injection" / "writer.py"


class Writer:
    """A process that writes to pages of a room of its own when it is told."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(WRITER)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self.process.pid
        self.start, self.end = (int(word) for word in self.say("where").split())

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def vmas(self):
        return maps.parse_smaps(proc.read_text(self.pid, "smaps"))

    def room(self):
        return [v for v in self.vmas() if v.start < self.end and self.start < v.end]

    def outside(self):
        """What must be as before: areas with their flags, and descriptors."""
        areas = [(v.start, v.end, v.prot, v.vm_flags) for v in self.vmas()]
        links = {n: proc.read_link(self.pid, f"fd/{n}") for n in proc.list_numbers(self.pid, "fd")}
        return areas, links


@pytest.fixture
def writer():
    one = Writer()
    yield one
    one.process.kill()
    one.process.communicate()


@pytest.fixture
def watched(writer):
    watch = uffd.Watch.open(writer.pid)
    assert (writer.start, writer.end) in watch.cover()
    fd = pagemap.open_pagemap(writer.pid)
    yield writer, watch, fd
    os.close(fd)
    watch.close()


def pages(runs, start):
    return [
        (at - start) // PAGE + i
        for at, size in zip(runs[::2], runs[1::2], strict=True)
        for i in range(size // PAGE)
    ]


def test_what_was_written(watched):
    writer, _, fd = watched
    start, end = writer.start, writer.end
    writer.say("write 3 4 9")
    assert pages(uffd.all_runs(fd, start, end), start) == [3, 4, 9]
    assert not uffd.written_runs(fd, start, end, protect=True)
    writer.say("write 4 20")
    assert pages(uffd.written_runs(fd, start, end, protect=False), start) == [4, 20]
    assert pages(uffd.written_runs(fd, start, end, protect=True), start) == [4, 20]
    assert not uffd.written_runs(fd, start, end, protect=True)
    writer.say("forget 9")
    assert not uffd.written_runs(fd, start, end, protect=True)
    assert 9 in pages(uffd.stale_runs(fd, start, end), start)
    assert 4 not in pages(uffd.stale_runs(fd, start, end), start)
    assert writer.say("check") == "ok\n"


def test_nothing_is_left(writer):
    before = writer.outside()
    watch = uffd.Watch.open(writer.pid)
    assert watch.cover()
    assert not watch.cover()
    fd = pagemap.open_pagemap(writer.pid)
    writer.say("write 1 2 3")
    uffd.all_runs(fd, writer.start, writer.end)
    assert all(FLAG in vma.vm_flags for vma in writer.room())
    watch.close()
    assert writer.outside() == before
    with pytest.raises(LookupError):
        uffd.all_runs(fd, writer.start, writer.end)
    os.close(fd)
    assert writer.say("check") == "ok\n"


def test_moved_forked_and_mapped_anew_are_not_watched(watched):
    writer, watch, fd = watched
    writer.say("write 1 2")
    uffd.all_runs(fd, writer.start, writer.end)
    child = int(writer.say("fork"))
    child_fd = pagemap.open_pagemap(child)
    with pytest.raises(LookupError):
        uffd.stale_runs(child_fd, writer.start, writer.end)
    os.close(child_fd)
    os.kill(child, signal.SIGKILL)
    assert pages(uffd.written_runs(fd, writer.start, writer.end, protect=False), writer.start) == []
    start, end = (int(word) for word in writer.say("move").split())
    assert not any(FLAG in v.vm_flags for v in writer.vmas() if v.start == start)
    assert not uffd.is_covered(fd, start)
    assert (start, end) in watch.cover()
    assert uffd.is_covered(fd, start)
    assert pages(uffd.all_runs(fd, start, end), start) == [1, 2]
    assert writer.say("check") == "ok\n"


def test_protection_changes_and_splits(watched):
    writer, _, fd = watched
    writer.say("write 1 2 3 4")
    uffd.all_runs(fd, writer.start, writer.end)
    writer.say("protect 2")
    assert len(writer.room()) == 3
    assert all(FLAG in v.vm_flags for v in writer.room())
    assert not uffd.written_runs(fd, writer.start, writer.end, protect=True)
    writer.say("unprotect 2")
    writer.say("write 2")
    runs = uffd.written_runs(fd, writer.start, writer.end, protect=True)
    assert pages(runs, writer.start) == [2]


def test_what_cannot_be_watched(writer):
    watch = uffd.Watch.open(writer.pid)
    watch.cover()
    watched = [vma for vma in writer.vmas() if FLAG in vma.vm_flags]
    assert {"[heap]", "[stack]"} <= {vma.name for vma in watched}
    assert not [vma for vma in watched if vma.inode or vma.shared or vma.name.startswith("[v")]
    left = [vma for vma in writer.vmas() if uffd.may_be_watched(vma) and vma not in watched]
    assert not [vma for vma in left if "dp" not in vma.vm_flags]
    watch.close()


def test_a_second_one_gets_nothing(watched):
    writer, _, _ = watched
    assert uffd.has_own(writer.vmas())
    other = uffd.Watch.open(writer.pid)
    assert other.cover() == []
    other.close()
    assert all(FLAG in v.vm_flags for v in writer.room())


def test_devices_behind_our_back(writer, tmp_path):
    assert uffd.written_behind(writer.pid, writer.vmas()) == ""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    if writer.say(f"direct {path}") != "ok\n":
        writer.say(f"direct {sys.executable}")
    assert "O_DIRECT" in uffd.written_behind(writer.pid, writer.vmas())


def test_the_descriptor_is_closed_by_the_task_when_we_die(writer):
    """Killed right after the call that made it: the worst instant."""
    before = writer.outside()
    vmas = writer.vmas()
    engine = os.fork()
    if engine == 0:
        try:
            space = AddressSpace.find(writer.pid, vmas)
            (tid,) = ptrace.stop_process(writer.pid)
            free = max(proc.list_numbers(writer.pid, "fd")) + 1
            remote = Remote.safe(tid, space, parting=("close", (free,)))
            remote.__enter__()
            if remote.call("userfaultfd", os.O_CLOEXEC | uffd.UFFD_USER_MODE_ONLY) == free:
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(engine, 0)[1] == signal.SIGKILL
    assert writer.say("check") == "ok\n"
    assert writer.outside() == before

# SPDX-License-Identifier: Apache-2.0
"""The C seam against live children of the test."""

import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import time
from array import array

import pytest

from torpor.engine import native
from torpor.engine.errors import KernelError, Timeout, Vanished
from torpor.engine.kernel.arch.x86_64 import NR, Regs
from torpor.engine.native import questions

PAGE = 4096
PAGE_IS_PRESENT = 8


@pytest.fixture
def sleeper():
    pid = native.spawn_seed(b"/bin/sleep", [b"sleep", b"60"])
    yield pid
    try:
        os.kill(pid, signal.SIGKILL)
        native.wait_end(pid)
    except (ProcessLookupError, KernelError):
        pass


def settle_twice(pid):
    for _ in range(2):
        native.settle(pid, timeout_s=1)
        time.sleep(0.05)


def wait_sleeping(pid):
    sleeping = {str(NR["clock_nanosleep"]), str(NR["restart_syscall"])}
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/comm") as comm, open(f"/proc/{pid}/syscall") as call:
            if comm.read() == "sleep\n" and call.read().split()[0] in sleeping:
                return
        time.sleep(0.001)
    raise AssertionError("sleep does not sleep")


def test_stops_reads_and_lets_go(sleeper):
    wait_sleeping(sleeper)
    assert native.stop_all([sleeper]) == ([], [])
    regs = native.get_regs(sleeper)
    assert regs.orig_rax == NR["clock_nanosleep"]
    assert regs.result in (-514, -516)
    assert Regs.unpack(regs.pack()) == regs
    assert native.get_sigmask(sleeper) == 0
    native.set_sigmask(sleeper, 1 << 9)
    assert native.get_sigmask(sleeper) == 1 << 9
    native.set_sigmask(sleeper, 0)
    xstate = native.get_xstate(sleeper)
    assert len(xstate) > 512
    native.set_xstate(sleeper, xstate)
    assert native.get_xstate(sleeper) == xstate
    assert native.stop_signal(sleeper) == 0
    pointer, size, _, _ = native.rseq_config(sleeper)
    assert (pointer == 0) == (size == 0)
    assert native.robust_list(sleeper)[1] in (0, 24)
    native.detach(sleeper)
    wait_sleeping(sleeper)


def test_pending_signals_are_read_and_stay(sleeper):
    wait_sleeping(sleeper)
    native.stop_all([sleeper])
    native.set_sigmask(sleeper, 1 << (signal.SIGUSR1 - 1))
    os.kill(sleeper, signal.SIGUSR1)
    for _ in range(2):
        (info,) = native.pending_signals(sleeper, shared=True)
        assert struct.unpack_from("<i", info)[0] == signal.SIGUSR1
    assert native.pending_signals(sleeper, shared=False) == []


def test_vanished_and_zombie_tasks_are_told_apart(sleeper):
    zombie = os.fork()
    if zombie == 0:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    assert native.stop_all([zombie, sleeper, 2**22 - 3]) == ([zombie, 2**22 - 3], [])
    os.waitpid(zombie, 0)
    os.kill(sleeper, signal.SIGKILL)
    with pytest.raises(Vanished):  # the kill comes at once, or after one more stop
        settle_twice(sleeper)


def test_wait_stop_times_out(sleeper):
    native.seize(sleeper)
    with pytest.raises(Timeout):
        native.wait_stop(sleeper, timeout_s=0.02)


def test_spawn_takes_a_pid_and_reports_failure():
    pid = native.spawn_seed(b"/bin/true", [b"true"])
    assert native.wait_end(pid) == 0
    again = native.spawn_seed(b"/bin/true", [b"true"], set_tid=pid, new_session=True)
    assert again == pid
    assert native.wait_end(pid) == 0
    with pytest.raises(KernelError, match="execve") as caught:
        native.spawn_seed(b"/nonexistent", [b"x"])
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(KernelError, match="clone3") as caught:
        native.spawn_seed(b"/bin/true", [b"true"], set_tid=os.getpid())
    assert caught.value.errno == errno.EEXIST


def test_spawned_child_has_only_its_stdio():
    read, write = os.pipe()
    extra = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(extra, True)
    pid = native.spawn_seed(
        b"/bin/sh",
        [b"sh", b"-c", b"exec ls -1 /proc/self/fd"],
        stdio=(extra, write, write),
        env=[b"PATH=/bin:/usr/bin"],
    )
    os.close(write)
    os.close(extra)
    with os.fdopen(read) as lines:
        assert lines.read().split() == ["0", "1", "2", "3"]  # 3 is ls's own directory
    assert native.wait_end(pid) == 0


def test_memory_both_ways(sleeper):
    wait_sleeping(sleeper)
    with open(f"/proc/{sleeper}/maps") as maps:
        start = next(int(line.split("-")[0], 16) for line in maps if "r-xp" in line)
    before = native.read_memory(sleeper, start, 64)
    native.write_memory(sleeper, start, before)  # text: through /proc/PID/mem
    assert native.read_memory(sleeper, start, 64) == before
    with pytest.raises(KernelError) as caught:
        native.read_memory(sleeper, 0x1000, 8)
    assert caught.value.errno == errno.EFAULT
    os.kill(sleeper, signal.SIGKILL)
    native.wait_end(sleeper)
    with pytest.raises(Vanished):
        native.read_memory(sleeper, start, 8)


@pytest.fixture
def area():
    """(pid, address, size): a child with 8 MiB of pages whose first word is their number."""
    size = 8 << 20
    room = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, size, PAGE):
        struct.pack_into("<Q", room, page, page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    pid = os.fork()
    if pid == 0:
        signal.pause()
    yield pid, address, size
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_capture_fill_and_compare(area, tmp_path):
    pid, address, size = area
    runs = array("Q", [address + size // 2, size // 2, address, PAGE, address + 2 * PAGE, PAGE])
    buffer = native.Buffer(size)
    buffer.populate(0, size)
    total = buffer.capture_runs(pid, runs, 0)
    assert total == size // 2 + 2 * PAGE
    assert struct.unpack_from("<Q", buffer.view(0, 8))[0] == size // 2
    assert struct.unpack_from("<Q", buffer.view(size // 2 + PAGE, 8))[0] == 2 * PAGE
    fd = os.open(tmp_path / "pages", os.O_RDWR | os.O_CREAT)
    progress = native.PagesProgress()
    digest = native.write_pages(buffer.extent(0, total), fd, progress)
    assert progress.written_bytes == total
    assert digest == native.digest_file(fd)
    buffer.close()

    triples, offset = array("Q"), 0
    for i in range(0, len(runs), 2):
        triples.extend((runs[i], runs[i + 1], offset))
        offset += runs[i + 1]
    assert list(native.compare_runs(pid, triples, fd)) == []
    changed = [address + size // 2 + 5 * PAGE, address + 2 * PAGE]
    for where in changed:
        native.write_memory(pid, where + 100, b"changed")
    assert list(native.compare_runs(pid, triples, fd)) == changed
    assert native.fill(pid, triples, fd).size_bytes == total
    assert list(native.compare_runs(pid, triples, fd)) == []
    os.truncate(fd, total - 1)
    with pytest.raises(KernelError) as caught:
        native.fill(pid, triples, fd)
    assert caught.value.errno == errno.ENODATA
    os.close(fd)


def test_scan_goes_on_past_a_full_room(area):
    pid, address, size = area
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    found = native.scan_pages(
        fd, address, address + size, required=PAGE_IS_PRESENT, returned=PAGE_IS_PRESENT
    )
    assert sum(found[i + 1] - found[i] for i in range(0, len(found), 3)) == size
    os.close(fd)


def test_kcmp_and_descriptors(sleeper):
    fd = os.open("/dev/null", os.O_RDONLY)
    pidfd = native.pidfd_open(os.getpid())
    copy = native.pidfd_getfd(pidfd, fd)
    mine = os.getpid()
    assert native.kcmp(mine, mine, native.KCMP_FILE, fd, copy) == 0
    assert native.kcmp(mine, mine, native.KCMP_FILE, fd, pidfd) in (1, 2)
    assert native.kcmp(mine, sleeper, native.KCMP_VM, 0, 0) in (1, 2)
    for each in (fd, copy, pidfd):
        os.close(each)
    with pytest.raises(Vanished):
        native.pidfd_open(2**22 - 3)


def test_facts_of_a_stopped_thread(sleeper):
    wait_sleeping(sleeper)
    native.stop_all([sleeper])
    os.setpriority(os.PRIO_PROCESS, sleeper, 7)
    (facts,) = native.ask_facts([sleeper])
    assert facts.regs == native.get_regs(sleeper)
    assert facts.xstate == native.get_xstate(sleeper)
    assert facts.rseq == native.rseq_config(sleeper)
    assert facts.robust == native.robust_list(sleeper)
    assert facts.code == native.read_memory(sleeper, facts.regs.rip - 32, 34)
    assert (facts.mask, facts.dispatch, facts.nice) == (0, 0, 7)
    assert facts.policy == os.sched_getscheduler(sleeper)
    assert facts.ioprio == native.ioprio_get(sleeper)
    cpus = {
        cpu for cpu in range(8 * len(facts.affinity)) if facts.affinity[cpu // 8] >> cpu % 8 & 1
    }
    assert cpus == os.sched_getaffinity(sleeper)
    native.detach(sleeper)
    with pytest.raises(Vanished):
        native.ask_facts([sleeper])


def test_registers_of_many_and_release(sleeper):
    wait_sleeping(sleeper)
    assert native.get_regs_of([sleeper, os.getpid()]) == [None, None]
    native.stop_all([sleeper])
    mine, none = native.get_regs_of([sleeper, os.getpid()])
    assert mine == native.get_regs(sleeper)
    assert none is None
    native.release(sleeper, None)
    wait_sleeping(sleeper)


def test_other_registers_only_without_a_signal(sleeper):
    wait_sleeping(sleeper)
    native.stop_all([sleeper])
    broken = native.get_regs(sleeper).copy()
    broken.rip, broken.orig_rax = 0, (1 << 64) - 1
    os.kill(sleeper, signal.SIGTERM)
    native.release(sleeper, broken)
    assert os.WTERMSIG(native.wait_end(sleeper)) == signal.SIGTERM


def test_int_options():
    with socket.socket(socket.AF_UNIX) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        wanted = [
            (socket.SOL_SOCKET, socket.SO_PASSCRED),
            (socket.SOL_SOCKET, 9999),
            (socket.SOL_SOCKET, socket.SO_TYPE),
        ]
        assert native.int_options(one.fileno(), wanted, "it") == [1, None, socket.SOCK_STREAM]
        assert native.int_options(one.fileno(), [], "it") == []
    with pytest.raises(KernelError, match="it"):
        native.int_options(one.fileno(), wanted, "it")


@pytest.mark.parametrize("many", [1, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 300])
def test_texts_are_whole_and_in_order(tmp_path, monkeypatch, many, count):
    monkeypatch.setattr(questions, "MANY", many)
    monkeypatch.setattr(questions, "TEXT_ROOM", 16)
    monkeypatch.setattr(questions, "TYPICAL_TEXT", 2)  # too little, several times
    texts = []
    for number in range(count):
        text = b"" if number % 5 == 3 else bytes([number % 251]) * (number * 13 % 97)
        texts.append(-errno.ENOENT if number % 7 == 4 else text)
        if number % 7 != 4:
            (tmp_path / str(number)).write_bytes(text)
    assert questions.read_texts([str(tmp_path / str(number)) for number in range(count)]) == texts

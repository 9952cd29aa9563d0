# SPDX-License-Identifier: Apache-2.0
"""Borrowed threads: system calls run inside, death of the tracer at any moment."""

import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import time
import traceback
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from torpor.engine import native
from torpor.engine.errors import Bug, KernelError, Refused
from torpor.engine.kernel import borrow, maps, proc, ptrace
from torpor.engine.kernel.borrow import Question
from torpor.engine.kernel.remote import AddressSpace, Remote

pytestmark = [pytest.mark.root, pytest.mark.functional]

HERE = Path(__file__).parent / "injection"
MODES = ["busy", "alarm", "altstack", "sleep", "poll", "epoll", "futex", "read", "threads", "deep"]
KILLS = 200


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    target = tmp_path_factory.mktemp("injection") / "target"
    source = str(HERE / "target.c")
    subprocess.run(
        ["cc", "-O1", "-Wall", "-Werror", "-pthread", source, "-o", str(target)], check=True
    )
    return target


class Target:
    """A running target and its counters."""

    def __init__(self, command, counters):
        counters.write_bytes(bytes(4096))
        self.file = counters.open("r+b")
        self.page = mmap.mmap(self.file.fileno(), 4096)
        self.process = subprocess.Popen([*command, str(counters)])
        self.pid = self.process.pid
        self.wait_rounds(3)
        while self.outside()[2][2]:  # pthread_create of a thread to come blocks all signals
            time.sleep(0.0005)

    def values(self):
        return struct.unpack_from("<5Q", self.page)

    def wait_rounds(self, count):
        goal = self.values()[0] + count
        deadline = time.monotonic() + 10
        while self.values()[0] < goal:
            assert self.process.poll() is None, f"the target ended with {self.process.returncode}"
            assert time.monotonic() < deadline, proc.read_text(self.pid, "status")
            time.sleep(0.0005)

    def check(self):
        """Still running, and nothing went wrong since the start."""
        self.wait_rounds(2)
        _, errors, _, detail, _ = self.values()
        assert errors == 0, f"{errors} errors, last one {detail}"

    def outside(self):
        """What must be the same before and after, as /proc shows it."""
        status = proc.parse_status(proc.read_text(self.pid, "status"))
        numbers = proc.list_numbers(self.pid, "fd")
        fds = {fd: proc.read_link(self.pid, f"fd/{fd}") for fd in numbers}
        in_handler = ~(1 << (signal.SIGALRM - 1))
        masks = (status.sig_blk & in_handler, status.shd_pnd & in_handler)
        actions = (status.sig_ign, status.sig_cgt, *masks)
        areas = proc.read_text(self.pid, "maps").splitlines()
        return areas, fds, actions, status.tracer_pid, status.threads

    def end(self):
        self.process.kill()
        self.process.wait()
        self.page.close()
        self.file.close()


@contextmanager
def running(command, tmp_path):
    target = Target(command, tmp_path / "counters")
    try:
        yield target
    finally:
        target.end()


@contextmanager
def stopped(pid):
    tids = ptrace.stop_process(pid)
    try:
        yield tids
    finally:
        ptrace.release_all(tids)


def space_of(pid):
    return AddressSpace.find(pid, maps.parse_maps(proc.read_text(pid, "maps")))


def inject(pid, tid, space):
    """What a dump asks: numbers, and something that the kernel writes to the buffer."""
    with Remote.safe(tid, space) as remote:
        assert remote.call("getpid") == pid
        assert remote.call("gettid") == tid
        remote.call("clock_gettime", 1, remote.buffer)
        seconds, nanoseconds = struct.unpack("<2Q", remote.read(remote.buffer, 16))
        assert abs(seconds + nanoseconds / 1e9 - time.monotonic()) < 5
        assert remote.try_call("close", 12345) == -9
        assert remote.calls([("getuid", ()), ("getppid", ())])[1] == os.getpid()


def questions_of_one(at):
    return [("gettid", ()), ("clock_gettime", (1, at)), ("close", (12345,))]


def questions(tids):
    """What `kernel.borrow` is asked: numbers, and something that is written to the buffer."""
    return [
        (tid, Question(calls=questions_of_one, answer_bytes=16 + 64 * i))
        for i, tid in enumerate(tids)
    ]


def ask_all(tids, space):
    (answers,) = borrow.ask([(space, questions(tids))])
    for tid, answer in zip(tids, answers, strict=True):
        assert answer.results == [tid, 0, -9]
        seconds, nanoseconds = struct.unpack_from("<2Q", answer.buffer)
        assert abs(seconds + nanoseconds / 1e9 - time.monotonic()) < 5


@pytest.mark.parametrize("mode", MODES)
def test_a_hundred_injections(program, tmp_path, mode):
    with running([program, mode], tmp_path) as target:
        space = space_of(target.pid)
        inject_once(target, space)
        before = target.outside()
        for _ in range(99):
            inject_once(target, space)
            time.sleep(random.random() * 0.002)
        target.check()
        assert target.values()[4] == 0
        assert target.outside() == before


def inject_once(target, space):
    with stopped(target.pid) as tids:
        space.forget_scratch()
        before = {tid: (native.get_regs(tid), native.get_xstate(tid)) for tid in tids}
        ask_all(tids, space)
        for tid in tids:
            if tid == tids[0]:
                inject(target.pid, tid, space)
            regs, xstate = before[tid]
            assert without_bitmap(native.get_xstate(tid)) == without_bitmap(xstate)
            if regs.result != -4:
                assert native.get_regs(tid) == regs
        scratch = space.scratch(1)
        assert not any(native.read_memory(target.pid, scratch.start, scratch.size))


def without_bitmap(xstate):
    """Without XSTATE_BV: the processor may call a component with initial values used or not."""
    return xstate[:512] + xstate[520:]


def attack(pid):
    """In a process of its own: inject for ever, until killed."""
    space = space_of(pid)
    partings = cycle((None, ("close", (12345,))))
    while True:
        tids = ptrace.stop_process(pid)
        space.forget_scratch()
        for _ in range(2):
            ask_all(tids, space)
        for tid in tids:
            with Remote.safe(tid, space, parting=next(partings)) as remote:
                for _ in range(3):
                    remote.calls([("getpid", ()), ("clock_gettime", (1, remote.buffer))])
        ptrace.release_all(tids)


def attack_and_die(pid, after_s):
    attacker = os.fork()
    if attacker == 0:
        try:
            attack(pid)
        except BaseException:  # noqa: BLE001 - a forked child must not return to pytest
            traceback.print_exc()
        finally:
            os._exit(1)
    time.sleep(after_s)
    os.kill(attacker, signal.SIGKILL)
    assert os.waitpid(attacker, 0)[1] == signal.SIGKILL


def but_for_a_page(lines, wanted):
    """Lines of maps, where a [stack] that begins a page lower than wanted is as wanted."""
    (old,) = (line for line in wanted if line.endswith("[stack]"))
    low, rest = old.split("-", 1)
    grown = f"{int(low, 16) - 4096:x}-{rest}"
    return type(lines)(old if line == grown else line for line in lines)


@pytest.mark.faults
@pytest.mark.parametrize("mode", MODES)
def test_kill_of_the_tracer_leaves_no_trace(program, tmp_path, mode):
    chance = random.Random(mode)
    with running([program, mode], tmp_path) as target:
        with stopped(target.pid):
            space_of(target.pid).scratch(65536)  # a deep stack has grown already
        before = target.outside()
        for _ in range(KILLS):
            attack_and_die(target.pid, 0.002 + chance.random() * 0.006)
            target.wait_rounds(1)
        target.check()
        after = target.outside()
        # a handler that ran on the scratch in between (ADR 3) may have grown the stack by a page
        if mode == "alarm":
            after = (but_for_a_page(after[0], before[0]), *after[1:])
        assert set(after[0]) ^ set(before[0]) == set()
        assert after == before
        for tid in proc.threads(target.pid):
            assert proc.parse_stat(proc.read_text(tid, "stat")).state in "RS"


def test_pending_signals_and_masks_survive(program, tmp_path):
    with running([program, "sleep"], tmp_path) as target:
        space = space_of(target.pid)
        with stopped(target.pid) as (tid,):
            native.set_sigmask(tid, 1 << (signal.SIGUSR1 - 1))
            os.kill(tid, signal.SIGUSR1)
            inject(target.pid, tid, space)
            assert native.get_sigmask(tid) == 1 << (signal.SIGUSR1 - 1)
            assert len(native.pending_signals(tid, shared=True)) == 1
        target.check()


def test_a_job_control_stop_stays(program, tmp_path):
    with running([program, "busy"], tmp_path) as target:
        space = space_of(target.pid)
        os.kill(target.pid, signal.SIGSTOP)
        wait_state(target.pid, "T")
        with stopped(target.pid) as (tid,):
            assert native.stop_signal(tid) == signal.SIGSTOP
            inject(target.pid, tid, space)
        wait_state(target.pid, "T")
        os.kill(target.pid, signal.SIGCONT)
        target.check()


def wait_state(pid, state):
    deadline = time.monotonic() + 5
    while proc.parse_stat(proc.read_text(pid, "stat")).state != state:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_room_that_is_unused_makes_the_stack_no_larger():
    """Wherever the stack pointer is: as much as is promised is there."""
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        try:
            time.sleep(0.2)
            space = space_of(process.pid)
            with stopped(process.pid):
                before = proc.read_text(process.pid, "maps")
                pointer = next(iter(space._stack_pointers()))
                for distance in range(0, 8192, 48):
                    space.stands([pointer - distance])
                    size = space.unused_bytes()
                    assert size > 0
                    space.forget_scratch()
                    space.scratch(size - 100)
                    assert proc.read_text(process.pid, "maps") == before
        finally:
            process.kill()


def test_errors_and_rules(program, tmp_path):
    with running([program, "threads"], tmp_path) as target:
        space = space_of(target.pid)
        with stopped(target.pid) as tids:
            with Remote.safe(tids[0], space) as remote:
                with pytest.raises(KernelError, match="openat") as caught:
                    remote.call("openat", -100, 0, 0)
                assert caught.value.errno == 14
                with pytest.raises(Bug):
                    remote.write(remote.buffer + 5000, b"x")
            native.detach(tids[-1])
            space.forget_scratch()
            with pytest.raises(Bug, match="not stopped"):
                Remote.safe(tids[0], space)
            native.stop_all([tids[-1]])
        target.check()


def test_exec_is_noticed(program, tmp_path):
    with running([program, "busy"], tmp_path) as target:
        space = space_of(target.pid)
        space._proof = ((space.way.syscall, b"not there"),)
        with stopped(target.pid) as (tid,):
            with pytest.raises(Exception, match="changed its code"):
                Remote.safe(tid, space).__enter__()
            assert native.get_regs(tid).rip != space.way.syscall
        target.check()


@pytest.mark.parametrize("way", ["pop", "none"])
def test_a_program_without_a_c_library(tmp_path, way):
    """No rt_sigreturn anywhere: a `pop %rax; ret` does; with neither it is refused."""
    define = ["-DWITH_POP"] if way == "pop" else []
    binary = tmp_path / "bare"
    flags = ["-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"]
    subprocess.run(["cc", *flags, *define, str(HERE / "bare.c"), "-o", str(binary)], check=True)
    with running([binary], tmp_path) as target:
        if way == "none":
            with pytest.raises(Refused, match="borrowed"):
                space_of(target.pid)
            return
        space = space_of(target.pid)
        assert space.way.chain
        for _ in range(20):
            attack_and_die(target.pid, random.random() * 0.01)
            target.check()


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("go") is None, reason="needs a Go compiler")
def test_a_go_program(tmp_path):
    binary = tmp_path / "gobinary"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    command = ["go", "build", "-o", str(binary), str(HERE / "main.go")]
    subprocess.run(command, check=True, env=environment)
    with running([binary], tmp_path) as target:
        space = space_of(target.pid)
        for _ in range(50):
            with stopped(target.pid) as tids:
                space.forget_scratch()
                for tid in tids:
                    inject(target.pid, tid, space)
        for _ in range(50):
            attack_and_die(target.pid, random.random() * 0.02)
            target.check()


def test_who_is_killed_in_a_stop_has_no_stack_pointer():
    """It runs out of its stop, and for a moment it neither stands nor has ended."""
    for _ in range(30):
        with subprocess.Popen(["/bin/sleep", "1000"]) as process:
            try:
                time.sleep(0.02)
                space = space_of(process.pid)
                with pytest.raises(Bug, match="a thread is not stopped"):
                    list(space._stack_pointers())
                native.seize(process.pid)
                with pytest.raises(Bug, match="a thread is not stopped"):
                    list(space._stack_pointers())
                native.interrupt(process.pid)
                native.wait_stop(process.pid)
                assert len(list(space._stack_pointers())) == 1
                os.kill(process.pid, signal.SIGKILL)
                for _ in range(5):
                    assert len(list(space._stack_pointers())) <= 1
            finally:
                process.kill()

# SPDX-License-Identifier: Apache-2.0
"""Each operation of a restore fails once: the error names it, and nothing is left.

The system call of one operation is replaced by one that no kernel has, on its way into the task.
Operations that may fail (`Expect.ANY`) may do so: then the tree is there. `make faults-all` has
every operation fail, the usual run a sample.
"""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from tests.faults.leftovers import EVERY, WORKLOADS, begin, found, same
from tests.functional.catalogue.every import CASES
from torpor.engine import api
from torpor.engine.errors import Bug, Error
from torpor.engine.options import RestoreOptions
from torpor.engine.program import encode
from torpor.engine.program.ops import Expect, Op

pytestmark = [pytest.mark.faults, pytest.mark.root]

NO_CALL = 0xFFFF
SAMPLE, MOST, SEED = 12, 700, 5
HAS_ANOTHER_WAY = ("shared anonymous memory",)
"""Subjects of operations that are tried, and done otherwise when they fail."""
BIRTHS = ("tasks_tree orphans", "tasks_tree two_reapers", "tasks_tree zombie_leader")
OF_BIRTHS = ("setsid", "prctl", "setpgid", "pidfd_open")
BY_NAME = {case.name: case for case in CASES}


@dataclass
class Fault:
    """Counts the operations of a restore, and makes one fail."""

    at: int = -1
    seen: int = 0
    op: Op | None = None
    calls: list[str] = field(default_factory=list)

    def encode(self, real, program, base, earlier=()):
        encoded = real(program, base, earlier)
        if base == 0:  # asked for its size only
            return encoded
        first, self.seen = self.seen, self.seen + len(program.ops)
        self.calls += [op.call for op in program.ops]
        if not first <= self.at < self.seen:
            return encoded
        self.op = program.ops[self.at - first]
        content = bytearray(encoded.content)
        (ops_at, *_) = encode.HEADER.unpack_from(content)
        place = ops_at - base + (self.at - first) * encode.OP.size
        content[place : place + 4] = NO_CALL.to_bytes(4, "little")
        return replace(encoded, content=bytes(content))


@pytest.fixture
def failing(monkeypatch):
    """Make the operation with a number fail; `Fault.seen` counts."""
    real = encode.encode

    def arm(at):
        fault = Fault(at)
        monkeypatch.setattr(encode, "encode", lambda *words: fault.encode(real, *words))
        return fault

    yield arm
    monkeypatch.setattr(encode, "encode", real)


def kill(live):
    for pid in live.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    live.reap(live.pids)


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_operation_fails_once(tmp_path, failing, name):
    each_fails(tmp_path, failing, name, lambda calls: chosen(len(calls), name))


@pytest.mark.parametrize("name", BIRTHS)
def test_nothing_lives_on_of_births_that_fail(tmp_path, failing, name):
    """Ghosts of ended session leaders, and those who let others adopt, end with the restore."""
    each_fails(
        tmp_path,
        failing,
        name,
        lambda calls: [at for at, call in enumerate(calls) if call in OF_BIRTHS],
    )


def each_fails(tmp_path, failing, name, choose):
    live = begin(tmp_path, BY_NAME[name])
    try:
        images = live.dump(words=BY_NAME[name].options)
        before = found(live)
        counter = failing(-1)
        restored(images)
        kill(live)
        for at in choose(counter.calls):
            one_fails(live, images, failing(at), before)
        failing(-1)
        live.restore()
        assert live.verdict() == "ok"
    finally:
        live.end()


def chosen(count, name):
    """What hundreds of threads need is the same for each of them."""
    most = MOST if EVERY else SAMPLE
    return sorted(Random(f"{SEED} {name}").sample(range(count), min(most, count)))


def restored(images):
    return api.restore(RestoreOptions(images_dir=images))


def one_fails(live, images, fault, before):
    error = None
    try:
        restored(images)
    except Error as raised:
        error = raised
    if fault.op is None and error is not None and "pid" in error.what:
        return  # a pid of it was taken by somebody else meanwhile
    assert fault.op is not None, error
    told = f"operation {fault.at}, {fault.op}: {error!r} {error}"
    if error is None:
        assert fault.op.expect is Expect.ANY or fault.op.subject in HAS_ANOTHER_WAY, told
        kill(live)
    else:
        assert not isinstance(error, Bug), told
        assert error.remedy, told
        assert error.subject, told
        if fault.op.expect is not Expect.ANY:
            assert fault.op.describe().split("  #")[0] in error.what, told
            assert fault.op.subject in error.subject, told
            assert "task " in error.subject, told
    same(live, before, told)

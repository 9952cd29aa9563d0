# SPDX-License-Identifier: Apache-2.0
"""Each call of a dump fails once: the workload runs on, and no image directory is left.

Every function of the C seam and every read of /proc is wrapped; one call of a dump gives an error
in place of its work. A dump may get over it (what it asked for was not needed); then its images
are whole. Functions that let a task go are not made to fail: the kernel has no error for them but
that the task is gone.
"""

import errno
import inspect
import shutil
from random import Random

import pytest

from tests.faults.leftovers import EVERY, WORKLOADS, begin, found, same
from tests.functional.catalogue.every import CASES
from torpor.engine import native
from torpor.engine.errors import Bug, Error, KernelError
from torpor.engine.kernel import proc
from torpor.engine.options import After

pytestmark = [pytest.mark.faults, pytest.mark.root]

LETTING_GO = {
    "release", "release_all", "detach", "cont", "kill_traced", "settle", "set_sigmask", "set_regs",
    "get_regs", "get_regs_of", "wait_end", "write_memory", "error_for",
}  # fmt: skip
READERS = ("read_text", "read_bytes", "threads", "children", "read_link")
SAMPLE, MOST, SEED = 14, 800, 5
BY_NAME = {case.name: case for case in CASES}


class Calls:
    """Counts the calls of wrapped functions, and makes one fail."""

    def __init__(self):
        self.at, self.seen, self.failed = -1, 0, ""

    def arm(self, at):
        self.at, self.seen, self.failed = at, 0, ""

    def wrapped(self, name, real):
        def call(*words, **named):
            number, self.seen = self.seen, self.seen + 1
            if number == self.at:
                self.failed = name
                raise KernelError(f"{name} failed", errno=errno.EIO, subject="a fault", remedy="-")
            return real(*words, **named)

        return call


@pytest.fixture
def calls(monkeypatch):
    one = Calls()
    for name, real in inspect.getmembers(native, inspect.isfunction):
        if real.__module__.startswith(native.__name__) and name not in LETTING_GO:
            monkeypatch.setattr(native, name, one.wrapped(name, real))
    for name in READERS:
        if hasattr(proc, name):
            monkeypatch.setattr(proc, name, one.wrapped(f"proc.{name}", getattr(proc, name)))
    return one


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_call_fails_once(tmp_path, calls, name):
    live = begin(tmp_path, BY_NAME[name])
    try:
        words = BY_NAME[name].options
        calls.arm(-1)
        live.dump("images-whole", After.CONTINUE, words=words)
        count = calls.seen
        state, before = live.look(), found(live)
        for at in chosen(count, name):
            calls.arm(at)
            failed = one_fails(live, calls, f"images-{at}", words)
            calls.arm(-1)
            same(live, before, f"call {at}, {failed}")
            live.unharmed()
        live.same_as(state, tuple(BY_NAME[name].changes))
        assert live.verdict() == "ok"
    finally:
        calls.arm(-1)
        live.end()


def chosen(count, name):
    """A large tree has thousands of them, which are the same for each of its tasks."""
    most = MOST if EVERY else SAMPLE
    return sorted(Random(f"{SEED} {name}").sample(range(count), min(most, count)))


def one_fails(live, calls, images, words):
    """The name of the call that failed."""
    folder, error = live.folder / images, None
    try:
        live.dump(images, After.CONTINUE, words=words)
    except Error as raised:
        error = raised
    except AssertionError as harmed:
        harmed.add_note(f"call {calls.at}, {calls.failed}")
        raise
    told = f"call {calls.at}, {calls.failed}: {error!r} {error}"
    left = {path.name for path in folder.iterdir()}
    if error is None:
        assert "torpor.json" in left, told
        assert "torpor.incomplete" not in left, told
    else:
        assert not isinstance(error, Bug), told
        assert not left, told
    shutil.rmtree(folder)
    return calls.failed

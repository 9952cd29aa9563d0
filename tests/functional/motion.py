# SPDX-License-Identifier: Apache-2.0
"""Dumps of workloads that never stand still, at random instants, in all ways, many times.

A workload (`workloads/motion_base.h`) has workers that check what they do and count what they have
done on a board. After each dump, and each restore, every worker has to go on.
"""

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.functional.describe import stopped, tree
from tests.functional.harness import Live
from torpor.engine import api
from torpor.engine.dump import predump
from torpor.engine.errors import Error
from torpor.engine.options import After, DumpOptions, MemoryWay, Progress, RestoreOptions

PATIENCE_S = 15.0
GLANCE_S = 0.002
LONGEST_REST_S = 0.04
WAYS = (MemoryWay.FROZEN, MemoryWay.SNAPSHOT, MemoryWay.PRECOPY)
CRIU = (sys.executable, "-m", "torpor.engine.criu")
COMMON = ("-o", "log", "-v4")


@dataclass(slots=True, kw_only=True)
class Mover:
    """A workload that is dumped again and again, and what came of it."""

    live: Live
    chance: random.Random
    options: dict[str, object] = field(default_factory=dict)
    words: tuple[str, ...] = ("--tcp-established",)
    """Options of CRIU's command line, for the ways that go by it."""
    number: int = 0
    done: Counter[str] = field(default_factory=Counter)
    again: list[str] = field(default_factory=list)
    """What made the engine try anew."""
    refused: list[str] = field(default_factory=list)

    def round(self, way: str) -> None:
        """One dump, and what follows it; a refusal is noted, and leaves the workload unharmed."""
        time.sleep(self.chance.random() * LONGEST_REST_S)
        self.number += 1
        self.live.pids |= set(tree(self.live.pid))
        try:
            getattr(self, way)()
        except Error as error:
            self.refused.append(f"{way}: {error}")
        self.done[way] += 1
        self.goes_on()
        for old in self.live.folder.glob("images-*"):
            shutil.rmtree(old)

    # ways

    def runs_on(self) -> None:
        self.dump(After.CONTINUE, self.chance.choice(WAYS))

    def moves(self) -> None:
        self.dump(After.STOP, MemoryWay.FROZEN)
        self._restore()

    def pauses(self) -> None:
        self.dump(After.PAUSE, MemoryWay.FROZEN)
        self._continue()

    def in_rounds(self) -> None:
        """Two pre-dumps, and a dump upon them that ends it; restored."""
        parent = ""
        for number in range(2):
            name = f"images-{self.number}-{number}"
            options = self._options(name, parent=parent)
            predump.pre_dump(options, progress=self._note)
            parent = f"../{name}"
            self.goes_on()
        self.dump(After.STOP, MemoryWay.FROZEN, parent=parent)
        self._restore()

    def by_command(self) -> None:
        """The `criu` program: left running, then ended and restored."""
        images = self.live.folder / f"images-{self.number}"
        for words in (("dump", "-R", "-t"), ("dump", "-t"), ("restore", "-d")):
            if words[0] == "dump":
                shutil.rmtree(images, ignore_errors=True)
                images.mkdir()
            which = (str(self.live.pid),) if words[-1] == "-t" else ()
            done = subprocess.run(
                [*CRIU, *words, *which, "-D", images, *COMMON, *self.words], check=False
            )
            if done.returncode and words[0] == "dump":
                text = (images / "log").read_text(errors="replace")
                raise Error(text[-600:])
            assert done.returncode == 0, (images / "log").read_text(errors="replace")[-1500:]
            if words == ("dump", "-t"):
                self._gone()

    # steps

    def _options(self, name: str, **more: object) -> DumpOptions:
        images = self.live.folder / name
        images.mkdir()
        return DumpOptions(pid=self.live.pid, images_dir=images, **{**self.options, **more})

    def dump(self, after: After, memory: MemoryWay, **more: object) -> None:
        options = self._options(f"images-{self.number}", after=after, memory=memory, **more)
        api.dump([options], progress=self._note)
        if after is After.STOP:
            self._gone()

    def _restore(self) -> None:
        options = RestoreOptions(images_dir=self.live.folder / f"images-{self.number}")
        assert api.restore(options).pid == self.live.pid

    def _continue(self) -> None:
        pids = tree(self.live.pid)
        running = {pid for pid in pids if state(pid) not in "TZX"}
        assert not running, f"not paused: {running} of {stopped(self.live.pid)}"
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _note(self, step: Progress) -> None:
        if step.phase == "again":
            self.again.append(step.text)

    def _gone(self) -> None:
        """All of it has ended, and their pids are free."""
        self.live.reap(self.live.pids)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def goes_on(self, rounds: int = 2) -> None:
        """Every worker does some more rounds, and none complains."""
        before, until_s = counts(self.live), time.monotonic() + PATIENCE_S
        while any(now < was + rounds for now, was in zip(counts(self.live), before, strict=True)):
            self.complaint()
            assert time.monotonic() < until_s, (
                f"stuck: {before} {counts(self.live)} {stopped(self.live.pid)}"
            )
            time.sleep(GLANCE_S)
        self.complaint()

    def complaint(self) -> None:
        result = self.live.folder / "result"
        assert not result.exists(), result.read_text()
        assert state(self.live.pid) not in "ZX", self.live.log()


def counts(live: Live) -> tuple[int, ...]:
    """Rounds of each worker so far."""
    raw = (live.folder / "board").read_bytes()
    (workers,) = struct.unpack_from("<Q", raw)
    return struct.unpack_from(f"<{workers}Q", raw, 16)


def state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return "X"

# SPDX-License-Identifier: Apache-2.0
"""Who sees a snapshot to its end when the dump cannot: a process that waits for us to die.

Facts: when we die the kernel kills the copies (PTRACE_O_EXITKILL), but what is left of them waits
for their parents, who know nothing of them (see `kernel.fork`). So a process that was started
before the stop reads from a pipe whose other end is ours alone; when that closes without a word it
has each parent wait for its copy. It is started by exec: a fork of a process with threads may run
no Python.
"""

import os
import select
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from torpor.engine.errors import Error, Vanished
from torpor.engine.kernel import fork, proc

if TYPE_CHECKING:
    from subprocess import Popen

EXPECT, BURY, DONE = "expect", "bury", "done"
NAME = "torpor-undertaker"
PROGRAM = f"""import sys
print(flush=True)
lines = sys.stdin.readlines()
if lines[-1:] != ["{DONE}\\n"]:
    from {__name__} import work
    work(lines)
"""
"""Nothing of the engine is loaded before it is needed: that would take a processor in the pause."""
START_S, PATIENCE_S, GLANCE_S = 1.0, 10.0, 0.002
EXIT_SIGNAL_AT, START_AT = 35, 19
"""Of the words of stat behind the name."""


class Undertaker:
    """The process, seen from the dump. Nothing happens before `start`."""

    def __init__(self, whom: Iterable[int]) -> None:
        self._starts = dict.fromkeys(whom, 0)
        """Of the tasks, by pid: when they were started."""
        self._process: Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        import subprocess  # slow to import, not always needed

        for pid in self._starts:
            with suppress(Error):
                self._starts[pid] = _start_of(pid)
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, NAME, *map(str, self._starts)],  # the last for `ps`
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def await_up(self) -> None:
        """See it sleep: what it is told is kept before that too, but to start takes a processor."""
        if self._process is not None and self._process.stdout is not None:
            with self._process.stdout as told:
                select.select([told], [], [], START_S)

    def expect(self, parent: int, trace: int) -> None:
        """A task is about to fork a copy of itself."""
        self._tell(EXPECT, parent, self._starts[parent], trace)

    def bury(self, made: fork.Copy) -> None:
        """It has."""
        self._tell(BURY, made.parent, made.pid, made.ns_pid)

    def end(self) -> None:
        """All copies are gone. Never raises."""
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.write(f"{DONE}\n".encode())
        with suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process = None

    def _tell(self, word: str, *numbers: int) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with suppress(OSError):
            self._process.stdin.write(f"{word} {' '.join(map(str, numbers))}\n".encode())
            self._process.stdin.flush()


def work(lines: Iterable[str]) -> None:
    """Be that process when the dump has died: see to what is left."""
    expected: dict[int, tuple[int, int]] = {}
    copies: dict[int, tuple[int, int]] = {}
    for line in lines:
        word, *numbers = line.split()
        parent, one, other = map(int, numbers)
        (expected if word == EXPECT else copies)[parent] = (one, other)
    for parent, (start, trace) in expected.items():
        with suppress(Error, OSError):
            if _start_of(parent) == start:
                _see_to(parent, copies.get(parent), trace)


def _see_to(parent: int, known: tuple[int, int] | None, trace: int) -> None:
    pid, ns_pid = known or _unknown(parent)
    until_s = time.monotonic() + PATIENCE_S
    while not fork.is_zombie_of(pid, parent):
        if time.monotonic() > until_s:
            return
        proc.read_text(pid, "stat")  # raises when it is gone
        time.sleep(GLANCE_S)
    fork.forget(parent, pid, ns_pid, trace)


def _unknown(parent: int) -> tuple[int, int]:
    """The copy, when the dump has died before it could say which: the youngest without a signal."""
    for word in reversed(proc.read_text(parent, f"task/{parent}/children").split()):
        if _words(int(word))[EXIT_SIGNAL_AT] == "0":
            return int(word), proc.parse_status(proc.read_text(int(word), "status")).ns_pid[-1]
    raise Vanished("was not made", subject=f"copy of task {parent}")


def _start_of(pid: int) -> int:
    return int(_words(pid)[START_AT])


def _words(pid: int) -> list[str]:
    return proc.read_text(pid, "stat").rpartition(")")[2].split()

# SPDX-License-Identifier: Apache-2.0
"""What a real program is tried on: started as a user would, moved by the `criu` command, asked.

A program is a generator over a `Stage`: it starts itself, lets clients work, and yields; at each
yield the tree is dumped, ended and restored by commands. What comes after checks that nothing is
missing. The kernel's description of every task must be the same afterwards, but for what changes
by itself from one look to the next.
"""

import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from tests.functional.describe import describe, differences, tree
from tests.functional.harness import Live
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.stats import read_dump_stats

RESULTS = Path(__file__).parents[2] / "build" / "tests" / "programs"
CRIU = (sys.executable, "-m", "torpor.engine.criu")
ADOPTING = (
    "/usr/bin/python3", "-c",
    "import ctypes, subprocess, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); "
    "subprocess.Popen(sys.argv[1:]).wait()",
)  # fmt: skip
"""A root to which orphans come (PR_SET_CHILD_SUBREAPER), as to the init of a container."""
LOOK_AGAIN_S = 0.3
MUST_CHANGE = {
    "socket peer's user": "the root of the tree makes all sockets (docs/limits.md)",
    ": Threads": "servers make and end threads at their leisure",
}
PATIENCE_S = 30.0


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of a program; ``frozen_ms`` and ``size_bytes`` of each dump."""

    program: str
    verdict: str = "fails"
    reason: str = ""
    tasks: int = 0
    frozen_ms: list[float] = field(default_factory=list)
    size_bytes: list[int] = field(default_factory=list)

    def keep(self) -> None:
        """Write it where docs are made from."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.program}.json").write_text(json.dumps(asdict(self), indent=1))


class Stage:
    """A folder, a tree of tasks in it, and the engine's command line."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.chmod(0o777)
        for parent in folder.parents:
            if parent.is_relative_to(gettempdir()) and parent != Path(gettempdir()):
                parent.chmod(0o755)  # servers that give their rights up must get there
        self.folder, self.result = folder, Result(program=name)
        self.live: Live | None = None
        self.words: tuple[str, ...] = ()
        """Options of dump and restore besides the usual ones."""
        self.busy = False
        """It goes on as fast as it can, so it looks different at once."""

    def run(self, *command: str | Path, **options: object) -> Live:
        """Start the root of the tree."""
        self.live = Live(self.folder, command, **options)  # type: ignore[arg-type]
        return self.live

    def shell(self, script: str, **options: object) -> Live:
        """Start a shell script as the root of the tree."""
        return self.run("/bin/bash", "-c", script, **options)

    def adopt(self, pid: int) -> Live:
        """A daemon that has left the process that was started: the root from now on."""
        assert self.live is not None
        self.live.pid = pid
        self.live.pids.add(pid)
        return self.live

    @property
    def root(self) -> Live:
        """The tree."""
        assert self.live is not None, "nothing was started"
        return self.live

    def port(self) -> int:
        """A free TCP port of the loopback."""
        with socket.create_server(("127.0.0.1", 0)) as one:
            return int(one.getsockname()[1])

    def eventually(self, probe: Callable[[], Any], what: str) -> Any:
        """What a probe gives once it gives something."""
        deadline = time.monotonic() + PATIENCE_S
        last = ""
        while True:
            try:
                if (got := probe()) is not None:
                    return got
            except (OSError, EOFError, subprocess.CalledProcessError) as error:
                last = str(error)
            assert time.monotonic() < deadline, f"{what}: {last} {self.root.log()}"
            time.sleep(0.05)

    def ask(self, port: int, text: str) -> str:
        """One line to a server, and its answer, on a connection of its own."""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            one.sendall(text.encode() + b"\n")
            return one.makefile().readline().strip()

    def text(self, name: str) -> str | None:
        """A file of the folder, None when there is nothing in it."""
        with suppress(OSError):
            return (self.folder / name).read_text() or None
        return None

    def move(self, number: int) -> None:
        """Dump, end, restore; look whether all is as it was."""
        root = self.root
        before = self._steady()
        images = self.folder / f"images-{number}"
        images.mkdir()
        pids = tree(root.pid)
        root.pids |= set(pids)
        self.result.tasks = len(pids)
        self._command("dump", images, "-t", str(root.pid))
        self._count(images)
        root.reap(root.pids)
        self._command("restore", images, "-d")
        root.mark()
        told = self._differs(before)
        assert not told, f"after the restore it is not the same: {told}"

    def _steady(self) -> dict[str, str]:
        """The description, without what changes by itself."""
        if self.busy:
            return {}
        first = describe(self.root.pid)
        time.sleep(LOOK_AGAIN_S)
        second = describe(self.root.pid)
        return {
            key: text
            for key, text in first.items()
            if second.get(key) == text and not any(part in key for part in MUST_CHANGE)
        }

    def _differs(self, before: dict[str, str]) -> str:
        deadline = time.monotonic() + 2
        while True:
            now = {k: v for k, v in describe(self.root.pid).items() if k in before}
            told = differences({k: v for k, v in before.items() if k in now}, now)
            there = {key.partition(":")[0] for key in now}  # tasks may end
            gone = sorted(k for k in before if k not in now and k.partition(":")[0] in there)
            told += "".join(
                f"\n{key}: gone (was {before[key]})" for key in gone if "area" not in key
            )
            if not told or time.monotonic() > deadline:
                return told
            time.sleep(0.05)

    def _command(self, verb: str, images: Path, *arguments: str) -> None:
        log = images / f"{verb}.log"
        words = [*CRIU, verb, "-D", str(images), "-o", log.name, "-v4", *arguments, *self.words]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        told = log.read_text(errors="replace")[-3000:] if log.exists() else done.stderr
        errors = [line for line in told.splitlines() if "Error" in line]
        assert done.returncode == 0, "\n".join(errors) or f"{shlex.join(words)}: {told}"

    def _count(self, images: Path) -> None:
        with ImageDirectory.open(images, verify=Verify.NOTHING) as opened:
            stats = read_dump_stats(opened)
            tasks = [entry.pid for entry in opened.messages("pstree", pb.pstree_entry)]
        self.root.pids |= set(tasks)  # a busy tree has other tasks than a moment ago
        assert stats is not None
        self.result.frozen_ms.append(round(stats.frozen_s * 1e3, 1))
        size = sum(path.stat().st_size for path in images.iterdir() if path.suffix == ".img")
        self.result.size_bytes.append(size)


Program = Callable[[Stage], Generator[None, None, None]]


def play(program: Program, folder: Path, name: str) -> Result:
    """Run a program through all its moves."""
    stage = Stage(folder, name)
    steps = program(stage)
    number = 0
    try:
        for _ in steps:
            number += 1
            stage.move(number)
        stage.result.verdict = "works"
    except BaseException as error:
        stage.result.reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise
    finally:
        stage.result.keep()
        steps.close()
        if stage.live is not None:
            stage.live.end()
    assert number >= 2, "it was not moved twice"
    return stage.result

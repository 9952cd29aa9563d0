# SPDX-License-Identifier: Apache-2.0
"""A harness as people write them around a `criu` executable: a driver, and its looks at a tree.

It knows nothing of the engine: a program is run with words, in directories of its own; what is
looked at are exit codes, logs, files, and what /proc tells of the tasks before and after.
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.functional.describe import tree

PATIENCE_S = 60.0
ERROR = re.compile(r"^\(\d\d\.\d{6}\)\s+(?:\d+: )?Error \((?!.*RLIMIT_NOFILE).*", re.MULTILINE)
"""A line that tells of an error, but for one of criu's that is none."""
LIBRARY_OF_VDSO = re.compile(r"\[v(var|dso|syscall)")


class Driver:
    """Runs one program on one workload; every command has a directory `DUMPS/NUMBER`."""

    def __init__(self, live, program: Sequence[str], environment=None) -> None:
        self.live = live
        self.program = list(program)
        self.dumps = live.folder / "dumps"
        self.dumps.mkdir()
        self.number = 0
        self.more: tuple[str, ...] = ()
        self.environment = {**os.environ, **(environment or {})}
        self.beside: list[subprocess.Popen[bytes]] = []

    @property
    def images(self) -> Path:
        """Directory of the latest command that makes images."""
        return self.dumps / str(self.number)

    def next(self) -> list[str]:
        """A new directory; words that lead to the one before."""
        self.number += 1
        self.images.mkdir()
        return ["--prev-images-dir", f"../{self.number - 1}"] if self.number > 1 else []

    def line(self, command: str, *words: str, log: str = "") -> list[str]:
        """A whole command line."""
        log = log or f"{command}.log"
        return [
            *self.program,
            command,
            "-o",
            log,
            "-D",
            str(self.images),
            "-v4",
            *words,
            *self.more,
        ]

    def run(self, command: str, *words: str, status: int = 0, **more: object) -> str:
        """Run to its end; returns the log. Success has no error in it, failure has one."""
        done = subprocess.run(
            self.line(command, *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env=self.environment,
            cwd="/",
            **more,
        )
        path = self.images / f"{command}.log"
        log = path.read_text(errors="replace") if path.exists() else ""
        assert done.returncode == status, (done.returncode, log[-3000:] or done.stderr)
        assert bool(found := ERROR.findall(log)) == bool(status), found
        return log

    def start(self, command: str, *words: str, **more: object) -> subprocess.Popen[bytes]:
        """Run beside; it is ended with the driver."""
        process = subprocess.Popen(
            self.line(command, *words), stdin=subprocess.DEVNULL, env=self.environment, **more
        )
        self.beside.append(process)
        return process

    def dump(self, *words: str, ends: bool = True, **more: object) -> None:
        """Dump the tree; it has gone after that, unless it should not."""
        self.live.mark()
        self.run("dump", "-t", str(self.live.pid), *words, **more)
        assert (self.images / "inventory.img").stat().st_size
        assert (self.images / "stats-dump").stat().st_size
        if ends:
            self.live.reap(self.live.pids)

    def restore(self, *words: str, **more: object) -> None:
        """Restore the latest images; the pid file tells the old pid."""
        pidfile = self.images / "restored.pid"
        pidfile.unlink(missing_ok=True)
        self.run("restore", "--pidfile", str(pidfile), "--restore-detached", *words, **more)
        assert int(pidfile.read_text()) == self.live.pid
        assert (self.images / "stats-restore").stat().st_size
        self.live.unharmed()

    def end(self) -> None:
        """End what runs beside."""
        for process in self.beside:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


def visible(pid: int) -> dict[str, object]:
    """What a harness compares of a tree: descriptors, mappings, mounts, of each task."""
    return {f"{one}": _task(one) for one in sorted(tree(pid))}


def _task(pid: int) -> dict[str, object]:
    proc = Path(f"/proc/{pid}")
    with suppress(OSError):
        return {
            "fds": sorted(os.listdir(proc / "fd"), key=int),
            "maps": _maps((proc / "maps").read_text(errors="surrogateescape")),
            "mounts": _mounts((proc / "mountinfo").read_text()),
        }
    return {}


def _maps(text: str) -> list[str]:
    """Areas with rights, neighbours of the same rights in one; the kernel's own are left out."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if LIBRARY_OF_VDSO.search(line):
            continue
        (begin, _, end), rights = line.split()[0].partition("-"), line.split()[1]
        if found and found[-1][1:] == [begin, rights]:
            found[-1][1] = end
        else:
            found.append([begin, end, rights])
    return [" ".join(one) for one in found]


def _mounts(text: str) -> list[str]:
    return sorted(" ".join(line.split()[3:6]) for line in text.splitlines())


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def await_path(path: Path) -> None:
    """Until a file is there, and not empty if it is a regular one."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() or (path.is_file() and not path.stat().st_size):
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def await_listener(port: int) -> None:
    """Until somebody listens at a port of the loopback."""
    wanted = f":{port:04X} "
    deadline = time.monotonic() + PATIENCE_S
    while not any(
        wanted in line and line.split()[3] == "0A"
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ):
        assert time.monotonic() < deadline, f"nobody listens at {port}"
        time.sleep(0.01)


def await_end(pid: int) -> None:
    """Until a process that is not a child of ours has gone."""
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists():
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        assert time.monotonic() < deadline, pid
        time.sleep(0.01)


def go_on(pids: Sequence[int]) -> None:
    """SIGCONT to each."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

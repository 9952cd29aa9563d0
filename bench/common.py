# SPDX-License-Identifier: Apache-2.0
"""What all parts of the bench share: programs, memory at hand, both engines, rows of the table."""

import contextlib
import ctypes
import json
import mmap
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.compat.criu_root import criu_root
from torpor.engine import api
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.stats import read_dump_stats
from torpor.engine.options import After, DumpOptions, RestoreOptions

ROOT = Path(__file__).resolve().parents[1]
MIB, GIB = 1 << 20, 1 << 30
PR_SET_CHILD_SUBREAPER = 36
MADV_POPULATE_WRITE = 23
Dump = Callable[[int, Path, bool], float]
"""Of a task, to a directory, ending it or not: seconds of the pause."""
Restore = Callable[[Path], None]
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass(slots=True, kw_only=True)
class Floor:
    """What the kernel alone takes for what a row measures, in the same run and unit."""

    value: float
    what: str


@dataclass(slots=True, kw_only=True)
class Row:
    """A line of the table: ours, Debian's criu beside it, and whether the goal is met.

    ``score`` is what the goal is about: a ratio to criu's, or what ``ours`` is more than something.
    """

    case: str
    measure: str
    ours: float
    unit: str = "ms"
    criu: float | None = None
    score: float | None = None
    goal: float | None = None
    at_least: bool = False
    floor: Floor | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """None without a goal."""
        if self.goal is None or self.score is None:
            return None
        return self.score >= self.goal if self.at_least else self.score <= self.goal

    def text(self) -> str:
        """As it is printed: a line, and one more for the floor of a goal that is not met."""
        criu = "" if self.criu is None else f"{self.criu:.4g}"
        score = "" if self.score is None else f"{self.score:.3g}"
        goal = "" if self.goal is None else f"{'>=' if self.at_least else '<='} {self.goal:.3g}"
        verdict = {None: "", True: "met", False: "NOT met"}[self.met]
        line = (
            f"{self.case:16} {self.measure:34} {self.ours:>9.4g} {criu:>9} {self.unit:5} "
            f"{score:>7} {goal:>8} {verdict}"
        )
        if self.met is False and self.floor is not None:
            line += f"\n{'':16}   floor {self.floor.value:.4g} {self.unit}: {self.floor.what}"
        return line.rstrip()

    def markdown(self) -> str:
        """The same for a page."""
        words = [self.case, self.measure, f"{figure(self.ours)} {self.unit}"]
        words.append("" if self.criu is None else figure(self.criu))
        words.append("" if self.score is None else f"{self.score:.2g}")
        goal = "" if self.goal is None else f"{self.goal:.3g}"
        words.append({None: "", True: f"{goal}: met", False: f"{goal}: **not met**"}[self.met])
        if self.met is False and self.floor is not None:
            words[-1] += f"; {self.floor.value:.3g} is {self.floor.what}"
        return f"| {' | '.join(words)} |"


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


HEADER = f"{'case':16} {'measure':34} {'torpor':>9} {'criu':>9} {'unit':5} {'score':>7} {'goal':>8}"


def against(
    case: str, measure: str, ours: Sequence[float], criu: Sequence[float], goal: float | None
) -> Row:
    """A row whose score is the median of the ratios, round by round."""
    ratio = statistics.median(a / b for a, b in zip(ours, criu, strict=True))
    return Row(case=case, measure=measure, ours=statistics.median(ours),
               criu=statistics.median(criu), score=ratio, goal=goal,
               samples={"torpor": list(ours), "criu": list(criu)})  # fmt: skip


def written(rows: Sequence[Row]) -> list[dict[str, object]]:
    """For JSON."""
    return [{**asdict(row), "met": row.met} for row in rows]


def machine() -> dict[str, object]:
    """What figures depend on."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "processor": model[1] if model else "",
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "huge_pages": re.findall(r"\[(\w+)\]", huge)[0],
        "load": os.getloadavg()[0],
    }


@contextmanager
def place() -> Iterator[Path]:
    """A directory on tmpfs for programs and images; orphans of what runs there are ours."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="torpor-bench-") as scratch:
        yield Path(scratch)


def compiled(scratch: Path, name: str) -> Path:
    """The program of bench/workloads/NAME.c."""
    program = scratch / name
    source = ROOT / f"bench/workloads/{name}.c"
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
    return program


@contextmanager
def running(program: Path, *words: object) -> Iterator[int]:
    """The pid of a workload that has said that it is ready; in the end its session is killed."""
    out = program.with_name("words")
    with out.open("w") as file:
        process = subprocess.Popen(
            [program, *map(str, words)], start_new_session=True, **{**QUIET, "stdout": file}
        )
    try:
        while "ready" not in out.read_text():
            if process.poll() is not None:
                raise SystemExit(f"{program} {words} ended with {process.returncode}")
            time.sleep(0.01)
        yield process.pid
    finally:
        end(process.pid)


@contextmanager
def ended(pid: int) -> Iterator[None]:
    """Ends a restored session, whatever happens."""
    try:
        yield
    finally:
        end(pid)


def end(pid: int) -> None:
    """Kill a session and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.005)
        except ChildProcessError:
            return


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) << 10


def warm(size_bytes: int) -> None:
    """Touch and free twice as much memory, as far as there is: a virtual machine may have given it
    back to its host, and then the first to touch it waits for the host.
    """
    size = min(2 * size_bytes, available_bytes() * 3 // 4)
    if size:
        with mmap.mmap(-1, size) as area:
            area.madvise(mmap.MADV_HUGEPAGE)  # free pages go back to the host in such pieces
            area.madvise(MADV_POPULATE_WRITE)


def fresh(scratch: Path) -> Path:
    """An empty place for images."""
    images = scratch / "images"
    shutil.rmtree(images, ignore_errors=True)
    return images


def dump_torpor(pid: int, images: Path, stop: bool) -> float:
    """Pause of our dump in seconds, in this process (as the agent does it)."""
    after = After.STOP if stop else After.CONTINUE
    return api.dump([DumpOptions(pid=pid, images_dir=images, after=after)])[0].frozen_s


def dump_criu(pid: int, images: Path, stop: bool) -> float:
    """Frozen time as CRIU's own statistics have it, in seconds."""
    images.mkdir()
    command = criu_root().criu("dump", "-t", str(pid), "-D", str(images), "--network-lock", "skip",
                               "-o", "dump.log", *([] if stop else ["-R"]))  # fmt: skip
    subprocess.run(command, check=True)
    with ImageDirectory.open(images, verify=Verify.NOTHING) as opened:
        stats = read_dump_stats(opened)
    assert stats is not None
    return stats.frozen_s


def restore_torpor(images: Path) -> None:
    """Ours, everything before the workload runs."""
    api.restore(RestoreOptions(images_dir=images))


def restore_criu(images: Path) -> None:
    """Debian's criu, as a command."""
    command = criu_root().criu(
        "restore", "-d", "-D", str(images), "--network-lock", "skip", "-o", "restore.log"
    )
    subprocess.run(command, check=True)


def save(path: Path, rows: Sequence[Row], **more: object) -> None:
    """Everything as JSON."""
    path.write_text(json.dumps({"machine": machine(), "rows": written(rows), **more}, indent=1))

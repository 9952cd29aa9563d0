# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what large memory costs, beside Debian's newest criu, in one run, A B A B.

    memory.py [--rounds N] [--json FILE] [--plot FILE] [--sizes MIB,MIB] [CASE ...]

The pause is the longest gap that a thread of the workload itself sees which looks at the clock all
the time; what the engine reports stands beside it, and so does the time of a fork of that memory,
which no snapshot can be quicker than. Images are on tmpfs. Medians of ratios; the first round warms
up and is dropped. Memory is touched before it is measured, for both engines.
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench.plot import plot  # noqa: E402
from bench.run import dump_criu, end, fresh, warm  # noqa: E402
from torpor.engine import api  # noqa: E402
from torpor.engine.options import After, DumpOptions, MemoryWay  # noqa: E402

MIB, GIB = 1 << 20, 1 << 30
KINDS = ("small", "huge")
PAUSES = ("snapshot", "frozen", "criu")
GOALS = {"small": 1 / 25, "huge": 1 / 200}
LEAST_OF_MEMCPY = 0.8
MOST_BYTES = 200 * MIB
CASES = ("pause-1", "pause-4", "stop-1", "peak-4", "plot")
SIZES_MIB = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(slots=True, kw_only=True)
class Hog:
    """A live workload of so much memory."""

    pid: int
    size_bytes: int
    words: mmap.mmap

    def gap_ms(self, act: Callable[[], object]) -> float:
        """The longest time that it did not run while something was done."""
        self.words[:8] = bytes(8)
        act()
        time.sleep(0.1)
        return float(struct.unpack_from("Q", self.words, 0)[0] / 1e6)

    def fork_ms(self) -> float:
        """How long a fork of its own takes."""
        struct.pack_into("Q", self.words, 8, 1)
        while struct.unpack_from("Q", self.words, 8)[0]:
            time.sleep(0.002)
        return float(struct.unpack_from("Q", self.words, 16)[0] / 1e6)


@dataclass(slots=True, kw_only=True)
class Row:
    """A line of the table."""

    case: str
    measure: str
    values: dict[str, float]
    goal: str = ""
    met: bool | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)

    def text(self) -> str:
        """As it is printed."""
        told = "  ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        verdict = (
            "" if self.met is None else f"  goal {self.goal}: {'met' if self.met else 'NOT met'}"
        )
        return f"{self.case:10} {self.measure:22} {told}{verdict}"


class Bench:
    """The program and a place for images."""

    def __init__(self, scratch: Path, rounds: int) -> None:
        self.scratch, self.rounds = scratch, rounds
        self.program = scratch / "hog"
        source = ROOT / "bench/workloads/hog.c"
        subprocess.run(["cc", "-O2", "-pthread", "-o", self.program, source], check=True)

    @contextmanager
    def hog(self, size_mib: int, kind: str) -> Iterator[Hog]:
        """A workload that is ready."""
        path, out = self.scratch / "words", self.scratch / "out"
        path.write_bytes(bytes(4096))
        warm(size_mib * MIB)
        with out.open("w") as file:
            process = subprocess.Popen(
                [self.program, str(size_mib), kind, path],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        try:
            while "ready" not in out.read_text():
                time.sleep(0.02)
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as words:
                yield Hog(pid=process.pid, size_bytes=size_mib * MIB, words=words)
        finally:
            end(process.pid)

    def images(self, size_mib: int) -> Path:
        """An empty directory, and memory at hand for what goes there."""
        place = fresh(self.scratch)
        warm(size_mib * MIB)
        return place

    def pause(
        self, size_mib: int, kind: str, ways: Sequence[str], rounds: int
    ) -> dict[str, list[float]]:
        """Gaps of a workload that runs on, by way, and the time of its fork."""
        found: dict[str, list[float]] = {way: [] for way in (*ways, "fork", "reported")}
        with self.hog(size_mib, kind) as hog:
            for number in range(rounds + 1):
                for way in ways:
                    act = partial(self._dump, hog, way, self.images(size_mib), found)
                    gap = hog.gap_ms(act)
                    if number:
                        found[way].append(gap)
                if number:
                    found["fork"].append(hog.fork_ms())
        fresh(self.scratch)
        return found

    def _dump(self, hog: Hog, way: str, images: Path, found: dict[str, list[float]]) -> None:
        if way == "criu":
            dump_criu(hog.pid, images, False)
            return
        options = DumpOptions(
            pid=hog.pid, images_dir=images, after=After.CONTINUE, memory=MemoryWay(way)
        )
        (report,) = api.dump([options])
        if report.memory_way.value != way:
            raise SystemExit(f"{way}: {report.memory_reason}")
        if way == "snapshot":
            found["reported"].append(report.frozen_s * 1e3)

    def pauses(self, gib: int) -> list[Row]:
        """Pauses of so many GiB."""
        rows = []
        for kind in KINDS:
            found = self.pause(gib * 1024, kind, PAUSES, self.rounds)
            ratios = [a / b for a, b in zip(found["snapshot"], found["criu"], strict=True)]
            ratio, goal = statistics.median(ratios), GOALS[kind]
            values = {f"{name} ms": statistics.median(each) for name, each in found.items() if each}
            rows.append(Row(case=f"pause-{gib}", measure=f"{gib} GiB of {kind} pages",
                            values={**values, "criu/snapshot": 1 / ratio},
                            goal=f"{1 / goal:.0f}", met=ratio <= goal, samples=found))  # fmt: skip
        return rows

    def stop(self, gib: int) -> Row:
        """Bytes a second of a dump that ends its tasks, beside memcpy and a new file of tmpfs."""
        samples: dict[str, list[float]] = {"dump": [], "memcpy": [], "new file": []}
        for number in range(self.rounds + 1):
            with self.hog(gib * 1024, "small") as hog:
                images = self.images(gib * 1024)
                begin = time.perf_counter()
                api.dump([DumpOptions(pid=hog.pid, images_dir=images)])
                speed = hog.size_bytes / (time.perf_counter() - begin) / GIB
            fresh(self.scratch)
            if number:
                samples["dump"].append(speed)
                samples["memcpy"].append(memcpy_speed())
                warm(GIB)
                samples["new file"].append(file_speed(self.scratch / "file"))
        ratio = statistics.median(
            a / b for a, b in zip(samples["dump"], samples["memcpy"], strict=True)
        )
        values = {f"{name} GiB/s": statistics.median(each) for name, each in samples.items()}
        return Row(case=f"stop-{gib}", measure="dump and stop", samples=samples,
                   values={**values, "dump/memcpy": ratio},
                   goal=str(LEAST_OF_MEMCPY), met=ratio >= LEAST_OF_MEMCPY)  # fmt: skip

    def peak(self, gib: int) -> Row:
        """Largest resident set of the command, for a tree that runs on and for one that ends."""
        values = {}
        with self.hog(gib * 1024, "small") as hog:
            for name, words in (("run on", ["-R"]), ("stop", [])):
                images = self.images(gib * 1024)
                command = [sys.executable, "-m", "torpor.engine.cli", "dump", str(hog.pid), "-D",
                           str(images), *words]  # fmt: skip
                values[f"{name} MiB"] = peak_bytes(command) / MIB
        fresh(self.scratch)
        met = max(values.values()) * MIB <= MOST_BYTES
        return Row(case=f"peak-{gib}", measure=f"peak memory, {gib} GiB", values=values,
                   goal=f"{MOST_BYTES // MIB} MiB", met=met)  # fmt: skip

    def curves(self, sizes_mib: Sequence[int]) -> dict[str, list[tuple[int, float]]]:
        """Pause over size of each way."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for size in sizes_mib:
            for kind in KINDS:
                found = self.pause(size, kind, PAUSES, 2)
                for way in PAUSES:
                    point = (size, min(found[way]))
                    curves.setdefault(f"{way}, {kind} pages", []).append(point)
                    print(
                        f"plot       {way}, {kind} pages: {size} MiB {point[1]:.2f} ms", flush=True
                    )
        return curves


def memcpy_speed() -> float:
    """GiB a second from one area that is there to another: one thread."""
    size = GIB // 4
    with mmap.mmap(-1, size) as one, mmap.mmap(-1, size) as other:
        for area in (one, other):
            area.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, size, mmap.PAGESIZE):
                area[at] = 1
        source, target = (ctypes.c_char.from_buffer(area) for area in (one, other))
        begin = time.perf_counter()
        for _ in range(4):
            ctypes.memmove(ctypes.addressof(target), ctypes.addressof(source), size)
        seconds = time.perf_counter() - begin
        del source, target
    return 4 * size / GIB / seconds


def file_speed(path: Path) -> float:
    """GiB a second from memory that is there into a new file: what a page of it costs at least."""
    block = bytes(MIB)
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(1024):
            file.write(block)
    seconds = time.perf_counter() - begin
    path.unlink()
    return 1 / seconds


def peak_bytes(command: Sequence[str]) -> int:
    """Largest resident set of a command that must succeed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return usage.ru_maxrss << 10


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


def main() -> None:
    """Run the cases and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", type=Path)
    options.add_argument("--plot", type=Path)
    options.add_argument("--sizes", default=",".join(map(str, SIZES_MIB)))
    options.add_argument("cases", nargs="*", default=list(CASES))
    chosen = options.parse_args()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows: list[Row] = []
    curves: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="torpor-bench-") as scratch:
        bench = Bench(Path(scratch), chosen.rounds)
        for case in chosen.cases:
            name, _, count = case.partition("-")
            if name == "plot":
                curves = bench.curves([int(word) for word in chosen.sizes.split(",")])
                continue
            done = {"pause": bench.pauses, "stop": bench.stop, "peak": bench.peak}[name](int(count))
            for row in done if isinstance(done, list) else [done]:
                print(row.text(), flush=True)
                rows.append(row)
    if chosen.json:
        told = {"machine": facts, "rows": [asdict(row) for row in rows], "curves": curves}
        chosen.json.write_text(json.dumps(told, indent=1))
    if chosen.plot and curves:
        chosen.plot.write_text(plot(curves, facts))


if __name__ == "__main__":
    main()

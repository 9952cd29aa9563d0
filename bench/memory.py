# SPDX-License-Identifier: Apache-2.0
"""What large memory costs: pauses, dump and stop, the engine's own memory, and pause over size.

The pause is the longest gap that a thread of the workload itself sees which looks at the clock all
the time; what the engine reports stands beside it. The floor of a snapshot is the time of a fork of
that memory and the pause of the same program without memory.
"""

import ctypes
import mmap
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.common import (
    GIB,
    MIB,
    QUIET,
    Floor,
    Row,
    against,
    available_bytes,
    compiled,
    dump_criu,
    dump_torpor,
    fresh,
    running,
    warm,
)
from torpor.engine import api
from torpor.engine.options import After, DumpOptions, MemoryWay

KINDS = ("small", "huge")
WAYS = ("snapshot", "frozen", "criu")
ROUNDS = "pre-copy"
GOALS = {"small": 1 / 25, "huge": 1 / 200}
SIZES_GIB = (1, 4)
LEAST_OF_MEMCPY = 0.8
MOST_MIB = 200
EMPTY_MIB = 2
SIZES_MIB = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SPARE_BYTES = 2 * GIB
STARTER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
Curves = dict[str, list[tuple[int, float]]]


@dataclass(slots=True, kw_only=True)
class Hog:
    """A live workload of so much memory."""

    pid: int
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


class Bench:
    """The program and a place for images."""

    def __init__(self, scratch: Path, rounds: int) -> None:
        self.scratch, self.rounds = scratch, rounds
        self.program = compiled(scratch, "hog")

    @contextmanager
    def hog(self, size_mib: int, kind: str) -> Iterator[Hog]:
        """A workload that is ready."""
        path = self.scratch / "numbers"
        path.write_bytes(bytes(4096))
        warm(size_mib * MIB)
        with (
            running(self.program, size_mib, kind, path) as pid,
            path.open("r+b") as file,
            mmap.mmap(file.fileno(), 4096) as words,
        ):
            yield Hog(pid=pid, words=words)
        fresh(self.scratch)

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

    def beside_writers(self, gib: int, rounds: int) -> float:
        """The longest gap beside two programs that each write as much to tmpfs, at the median.

        They last as long as a dump: a virtual machine gives memory that was freed back to its host
        two seconds later (mm/page_reporting.c), and then there are gaps beside any work.
        """
        found = []
        with self.hog(EMPTY_MIB, "small") as hog:
            for _ in range(rounds):
                folder = self.images(gib << 10)
                folder.mkdir()
                found.append(hog.gap_ms(partial(write_twice, folder, gib << 10)))
        return statistics.median(found)

    def pauses(self, gib: int) -> Iterator[Row]:
        """Pauses of so many GiB, beside that of a program without memory."""
        beside = self.beside_writers(gib, self.rounds)
        empty = statistics.median(self.pause(EMPTY_MIB, "small", ("frozen",), 8)["frozen"])
        for kind in KINDS:
            found = self.pause(gib << 10, kind, WAYS, self.rounds)
            row = against(f"pause {gib} GiB", f"{kind} pages, seen by the workload",
                          found["snapshot"], found["criu"], GOALS[kind])  # fmt: skip
            fork = statistics.median(found["fork"])
            what = (
                f"its own fork ({fork:.3g}) and its pause without memory ({empty:.3g}), or the gap "
                f"beside two dd that each write as much ({beside:.3g})"
            )
            row.floor = Floor(value=max(fork + empty, beside), what=what)
            row.samples = found
            yield row
            yield Row(case=f"pause {gib} GiB", measure=f"{kind} pages, frozen way",
                      ours=statistics.median(found["frozen"]), criu=row.criu)  # fmt: skip

    def stop(self, gib: int) -> Row:
        """Bytes a second of a dump that ends its tasks, beside memcpy and a new file of tmpfs."""
        samples: dict[str, list[float]] = {"torpor": [], "criu": [], "memcpy": [], "file": []}
        for number in range(self.rounds + 1):
            now = {
                "torpor": self._stop_speed(gib, dump_torpor),
                "criu": self._stop_speed(gib, dump_criu),
                "memcpy": memcpy_speed(),
            }
            warm(gib * GIB)
            now["file"] = file_speed(self.scratch / "file", gib)
            for name in now if number else ():
                samples[name].append(now[name])
        ratios = [a / b for a, b in zip(samples["torpor"], samples["memcpy"], strict=True)]
        ours, criu, memcpy, file = (statistics.median(each) for each in samples.values())
        return Row(case=f"stop {gib} GiB", measure=f"dump and stop; memcpy {memcpy:.2f}", ours=ours,
                   criu=criu, unit="GiB/s", score=statistics.median(ratios), goal=LEAST_OF_MEMCPY,
                   at_least=True, samples=samples,
                   floor=Floor(value=file, what="one thread that writes a new file of tmpfs, "
                               "which has one writer at a time"))  # fmt: skip

    def _stop_speed(self, gib: int, dump: Callable[[int, Path, bool], float]) -> float:
        with self.hog(gib << 10, "small") as hog:
            images = self.images(gib << 10)
            begin = time.perf_counter()
            dump(hog.pid, images, True)
            return gib / (time.perf_counter() - begin)

    def peak(self, gib: int) -> Iterator[Row]:
        """Largest resident set of the command, for a tree that runs on and for one that ends."""
        with self.hog(gib << 10, "small") as hog:
            for name, words in (("run on", ["-R"]), ("stop", [])):
                images = self.images(gib << 10)
                command = [sys.executable, "-m", "torpor.engine.cli", "dump", str(hog.pid), "-D",
                           str(images), *words]  # fmt: skip
                peak = peak_bytes(command) / MIB
                yield Row(case=f"peak {gib} GiB", measure=f"memory of the engine, {name}",
                          ours=peak, unit="MiB", score=peak, goal=MOST_MIB)  # fmt: skip

    def curves(self, sizes_mib: Sequence[int]) -> Curves:
        """Pause over size of each way, as far as there is memory for all copies."""
        curves: Curves = {}
        for size in sizes_mib:
            for kind in KINDS:
                fits = (available_bytes() - SPARE_BYTES) // (size * MIB)
                ways = [way for way in WAYS if fits >= (3 if way == "frozen" else 2)]
                found = self.pause(size, kind, ways, 2)
                # watching for writes takes huge pages apart: not what other ways are to meet
                if fits >= 3:  # what the rounds have copied, and the images
                    found[ROUNDS] = self.pause(size, kind, (ROUNDS,), 2)[ROUNDS]
                    ways.append(ROUNDS)
                for way in ways:
                    point = (size, min(found[way]))
                    curves.setdefault(f"{way}, {kind} pages", []).append(point)
                    print(f"  {way}, {kind} pages, {size} MiB: {point[1]:.2f} ms", flush=True)
        return curves


def rows(scratch: Path, rounds: int, sizes_gib: Sequence[int] = SIZES_GIB) -> Iterator[Row]:
    """Everything but the plot."""
    bench = Bench(scratch, rounds)
    for gib in sizes_gib:
        yield from bench.pauses(gib)
    yield bench.stop(1)
    yield from bench.peak(sizes_gib[-1])


def write_twice(folder: Path, mib: int) -> None:
    """By two programs at the same time."""
    words = ["dd", "if=/dev/zero", "bs=1M", f"count={mib}"]
    running = [subprocess.Popen([*words, f"of={folder / name}"], **QUIET) for name in ("a", "b")]
    for process in running:
        process.wait()


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


def file_speed(path: Path, gib: int) -> float:
    """GiB a second from memory that is there into a new file: what a page of it costs at least."""
    block = bytes(MIB)
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(gib << 10):
            file.write(block)
    seconds = time.perf_counter() - begin
    path.unlink()
    return gib / seconds


def peak_bytes(command: Sequence[str]) -> int:
    """Largest resident set of a command that must succeed.

    An exec counts what its process had before (fs/exec.c, exec_mmap; v6.18), which after a vfork is
    what its parent has: so a small program starts it.
    """
    started = subprocess.run(
        [sys.executable, "-c", STARTER, *command], check=False, capture_output=True, text=True
    )
    if started.returncode:
        raise SystemExit(f"{command} ended with {started.returncode}: {started.stderr}")
    return int(started.stdout) << 10

# SPDX-License-Identifier: Apache-2.0
"""What a dump tells of itself: how long each phase took, statistics, the report."""

import time
from collections.abc import Mapping
from functools import cache

from torpor.engine.dump.treedump import TreeDump
from torpor.engine.errors import Timeout
from torpor.engine.images.stats import DumpStats
from torpor.engine.memory import areas
from torpor.engine.options import (
    DumpReport,
    Progress,
    ProgressFn,
)

REST = "between the steps"


class Phases:
    """Durations by name, told as progress; of those within the pause also apart."""

    def __init__(self, progress: ProgressFn, timeout_s: float) -> None:
        self.progress, self.seconds = progress, dict[str, float]()
        self.pause: dict[str, float] = {}
        self._frozen_at: float | None = None
        self.begin, self.timeout_s = time.perf_counter(), timeout_s

    def __call__(self, name: str) -> "_Step":
        """Time what is inside and tell its name."""
        self.progress(_begun(name))
        begin = time.perf_counter()
        if begin - self.begin > self.timeout_s and name != "commit":
            raise Timeout(
                f"the dump took longer than {self.timeout_s:g} s",
                subject=f"phase {name}",
                cause=", ".join(f"{n} {s:.2f} s" for n, s in self.seconds.items()),
                remedy="give it more time (--timeout)",
            )
        return _Step(self, name, begin)

    def pause_begins(self) -> None:
        """The first task is stopped now."""
        self._frozen_at = time.perf_counter()

    def all_stand(self) -> None:
        """The last one is."""
        assert self._frozen_at is not None
        self.add("stop", time.perf_counter() - self._frozen_at)

    def pause_ends(self) -> float:
        """They were let go, or everything of them was taken: how long that was."""
        assert self._frozen_at is not None
        frozen_s = time.perf_counter() - self._frozen_at
        self._frozen_at = None
        self.pause[REST] = max(frozen_s - sum(self.pause.values()), 0.0)
        return frozen_s

    def add(self, name: str, seconds: float) -> None:
        """Of a name, so many more."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._frozen_at is not None:
            self.pause[name] = self.pause.get(name, 0.0) + seconds


class _Step:
    """A part of a dump while it lasts; there are many of them under a pause."""

    __slots__ = ("_begin", "_name", "_phases")

    def __init__(self, phases: Phases, name: str, begin: float) -> None:
        self._phases, self._name, self._begin = phases, name, begin

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._phases.add(self._name, time.perf_counter() - self._begin)


@cache
def _begun(name: str) -> Progress:
    return Progress(phase=name)


def stats_of(dump: TreeDump, phase: Phases, frozen_s: float) -> DumpStats:
    """For CRIU's stats-dump."""
    assert dump.taken is not None
    count, left = dump.taken.size_bytes // areas.PAGE, dump.taken.left_bytes // areas.PAGE
    return DumpStats(
        freezing_s=phase.seconds.get("stop", 0.0),
        frozen_s=frozen_s,
        memory_dump_s=phase.seconds.get("memory", 0.0),
        memory_write_s=phase.seconds.get("write", 0.0),
        pages_scanned=count,
        pages_written=dump.written_bytes // areas.PAGE,
        pages_skipped_parent=count - left - dump.written_bytes // areas.PAGE,
        pages_lazy=left,
    )


def report_of(dump: TreeDump, phase: Phases, frozen_s: float) -> DumpReport:
    """What a dump did."""
    assert dump.taken is not None
    assert dump.way is not None
    return DumpReport(
        images_dir=dump.options.images_dir,
        tasks=len(dump.captured),
        threads=sum(len(c.task.tids) for c in dump.captured),
        descriptors=dump.files.descriptors,
        memory_bytes=dump.taken.size_bytes,
        image_bytes=dump.image_bytes,
        frozen_s=frozen_s,
        total_s=time.perf_counter() - phase.begin,
        phases_s=flat(phase.seconds),
        pause_s=flat(phase.pause),
        warnings=tuple(dump.warnings),
        skipped_bytes=dump.taken.size_bytes - dump.taken.left_bytes - dump.written_bytes,
        memory_way=dump.way.kind,
        memory_reason=dump.way.reason,
        rounds=tuple(dump.way.rounds),
    )


def flat(seconds: Mapping[str, float]) -> dict[str, float]:
    """Rounded to microseconds."""
    return {name: round(value, 6) for name, value in seconds.items()}

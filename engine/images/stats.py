# SPDX-License-Identifier: Apache-2.0
"""stats-dump and stats-restore: counters that runtimes print and checkpointctl shows.

CRIU writes them into its work directory, which need not be that of the images; they are no part of
what torpor.json lists.
"""

from dataclasses import dataclass
from pathlib import Path

from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.failures import translated
from torpor.engine.images.format import Writer, read_entries
from torpor.engine.images.kinds import BY_STEM
from torpor.engine.images.proto import criu_pb2 as pb

MAX_US = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpStats:
    """Times and pages of a dump."""

    freezing_s: float = 0
    frozen_s: float = 0
    memory_dump_s: float = 0
    memory_write_s: float = 0
    pages_scanned: int = 0
    pages_written: int = 0
    pages_skipped_parent: int = 0
    pages_lazy: int = 0
    shared_pages_scanned: int = 0
    shared_pages_written: int = 0

    def message(self) -> pb.stats_entry:
        """As stats-dump holds it."""
        return pb.stats_entry(
            dump=pb.dump_stats_entry(
                freezing_time=_us(self.freezing_s),
                frozen_time=_us(self.frozen_s),
                memdump_time=_us(self.memory_dump_s),
                memwrite_time=_us(self.memory_write_s),
                pages_scanned=self.pages_scanned,
                pages_skipped_parent=self.pages_skipped_parent,
                pages_written=self.pages_written,
                pages_lazy=self.pages_lazy,
                shpages_scanned=self.shared_pages_scanned,
                shpages_written=self.shared_pages_written,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreStats:
    """Times and pages of a restore."""

    forking_s: float = 0
    restore_s: float = 0
    pages_restored: int = 0

    def message(self) -> pb.stats_entry:
        """As stats-restore holds it."""
        return pb.stats_entry(
            restore=pb.restore_stats_entry(
                pages_compared=0,
                pages_skipped_cow=0,
                forking_time=_us(self.forking_s),
                restore_time=_us(self.restore_s),
                pages_restored=self.pages_restored,
            )
        )


def write_stats(directory: Path, stats: DumpStats | RestoreStats) -> None:
    """Write stats-dump or stats-restore into a directory, over an older one."""
    name = "stats-dump" if isinstance(stats, DumpStats) else "stats-restore"
    with translated("write", str(directory / name)), (directory / name).open("wb") as stream:
        Writer(stream, name, BY_STEM[name]).add(stats.message())


def read_stats(directory: Path, name: str) -> pb.stats_entry:
    """The message of stats-dump or stats-restore in a directory."""
    with translated("read", str(directory / name)), (directory / name).open("rb") as stream:
        (entry,) = read_entries(stream, name, BY_STEM[name])
    return pb.stats_entry.FromString(entry.message.SerializeToString())


def read_dump_stats(images: ImageDirectory) -> DumpStats | None:
    """Stats of the dump, when the directory has them: the work directory may be another."""
    if "stats-dump" not in images:
        return None
    stats = images.message("stats-dump", pb.stats_entry).dump
    return DumpStats(
        freezing_s=stats.freezing_time / 1e6,
        frozen_s=stats.frozen_time / 1e6,
        memory_dump_s=stats.memdump_time / 1e6,
        memory_write_s=stats.memwrite_time / 1e6,
        pages_scanned=stats.pages_scanned,
        pages_written=stats.pages_written,
        pages_skipped_parent=stats.pages_skipped_parent,
        pages_lazy=stats.pages_lazy,
        shared_pages_scanned=stats.shpages_scanned,
        shared_pages_written=stats.shpages_written,
    )


def _us(seconds: float) -> int:
    return min(round(seconds * 1e6), MAX_US)

# SPDX-License-Identifier: Apache-2.0
"""--display-stats: what stats-dump and stats-restore hold, as CRIU prints it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from torpor.engine.images.stats import read_stats

DUMP = (
    ("Freezing time", "freezing_time", True),
    ("Frozen time", "frozen_time", True),
    ("Memory dump time", "memdump_time", True),
    ("Memory write time", "memwrite_time", True),
    ("IRMAP resolve time", "irmap_resolve", True),
    ("Memory pages scanned", "pages_scanned", False),
    ("Memory pages skipped from parent", "pages_skipped_parent", False),
    ("Memory pages written", "pages_written", False),
    ("Lazy memory pages", "pages_lazy", False),
)
RESTORE = (
    ("Pages compared", "pages_compared", False),
    ("Pages skipped COW", "pages_skipped_cow", False),
    ("Pages restored", "pages_restored", False),
    ("Restore time", "restore_time", True),
    ("Forking time", "forking_time", True),
)


def show_dump(directory: Path) -> None:
    """The statistics of a dump, on stdout."""
    _show("dump", read_stats(directory, "stats-dump").dump, DUMP)


def show_restore(directory: Path) -> None:
    """The statistics of a restore, on stdout."""
    _show("restore", read_stats(directory, "stats-restore").restore, RESTORE)


def _show(what: str, entry: object, rows: Sequence[tuple[str, str, bool]]) -> None:
    lines = [f"Displaying {what} stats:"]
    for title, field, is_time in rows:
        value = getattr(entry, field)
        lines.append(f"{title}: {value} us" if is_time else f"{title}: {value} ({value:#x})")
    sys.stdout.write("\n".join(lines) + "\n")

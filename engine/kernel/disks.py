# SPDX-License-Identifier: Apache-2.0
"""Whether disks have requests under way (Documentation/block/stat.rst)."""

import time
from contextlib import suppress
from pathlib import Path

BLOCK = Path("/sys/block")
PAUSE_S = 0.001


def are_idle(patience_s: float, block: Path = BLOCK) -> bool:
    """Wait until no disk has a request under way."""
    until_s = time.monotonic() + patience_s
    while _busy(block):
        if time.monotonic() > until_s:
            return False
        time.sleep(PAUSE_S)
    return True


def _busy(block: Path) -> bool:
    for path in block.glob("*/inflight"):
        with suppress(OSError):
            if any(int(word) for word in path.read_text(encoding="ascii").split()):
                return True
    return False

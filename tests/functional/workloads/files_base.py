# SPDX-License-Identifier: Apache-2.0
"""What a workload of files does: set up, say so, wait while it is moved, check itself.

In the directory of its first argument it writes `ready` (its pid), waits for `go`, and writes
`result`: `ok`, or what was wrong.
"""

import os
import sys
import time
import traceback
from pathlib import Path


def workload(body):
    """Run a generator: what comes before its only yield is the set-up, the rest the check."""
    place = Path(sys.argv[1])
    text = "ok"
    steps = body(place)
    next(steps)
    part = place / "ready.part"
    part.write_text(str(os.getpid()))
    part.rename(place / "ready")
    while not (place / "go").exists():
        time.sleep(0.02)
    try:
        next(steps, None)
    except BaseException:  # noqa: BLE001 (it is the result)
        text = traceback.format_exc()
    part = place / "result.part"
    part.write_text(text)
    part.rename(place / "result")

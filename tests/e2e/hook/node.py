# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder know of their cluster."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIRECTORY = Path("/var/lib/torpor-hook-cluster")
NODE = "h"
NAMESPACE = "hooked"


def wait_for(what: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s")

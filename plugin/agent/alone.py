# SPDX-License-Identifier: Apache-2.0
"""One agent works on a node at a time.

An agent whose pod was deleted by force may be started once more, and lives on for a while beside
the one that follows it. Both would freeze the same pods. The lock is on the directory of the node's
control groups: every agent of the node sees it, whatever its volumes are, and it goes with its
holder, however that ends.
"""

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)
_POLL_S = 0.2


def hold(cgroups: Path, stopped: Callable[[float], bool]) -> int | None:
    """Wait until no other agent works here; None when ``stopped`` (seconds) became true first.

    The descriptor holds the lock. It is left open: work may go on until the process ends.
    """
    fd = os.open(cgroups, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    is_told = False
    while not _try(fd):
        if not is_told:
            _log.warning("another agent works on this node; waiting for its end")
            is_told = True
        if stopped(_POLL_S):
            os.close(fd)
            return None
    return fd


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)
_POLL_S = 0.2


@contextmanager
def alone(cgroups: Path, stopped: Callable[[float], bool]) -> Iterator[bool]:
    """Wait until no other agent works here; False when ``stopped`` (seconds) became true first."""
    fd = os.open(cgroups, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        is_told = False
        while not _try(fd):
            if not is_told:
                _log.warning("another agent works on this node; waiting for its end")
                is_told = True
            if stopped(_POLL_S):
                yield False
                return
        yield True
    finally:
        os.close(fd)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

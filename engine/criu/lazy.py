# SPDX-License-Identifier: Apache-2.0
"""`criu lazy-pages` and `restore --lazy-pages`, for scripts that use them.

Facts (criu 4.2.1, tried): the daemon listens at lazy-pages.socket in the work directory, where a
restore must find it, and ends with 0 when all pages are in place; the socket's name stays. Here a
restore puts all pages in place before anything runs, and then tells the daemon: nothing is left to
do on demand. A restore by CRIU, which hands over userfaultfds, is sent away.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torpor.engine import logs
from torpor.engine.criu import pageserver, session
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Refused
from torpor.engine.images.failures import translated

NAME = "lazy-pages.socket"
RESTORED = b"torpor: all pages are in place\n"

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Wait for one restore."""
    if line.flag("page_server"):
        raise Refused("pages are not fetched from a page server", subject="--page-server",
                      remedy="have the pages in the image directory")  # fmt: skip
    begun = session.begin(line)
    path = begun.work_dir / NAME
    with socket.socket(socket.AF_UNIX) as listening, translated("listen at", str(path)):
        with suppress(FileNotFoundError):
            path.unlink()
        listening.bind(_short(path))
        listening.listen(1)
        if pageserver.leave(begun):
            return 0
        pageserver.tell_ready(line)
        connection, _ = listening.accept()
        with connection:
            said = connection.recv(len(RESTORED), socket.MSG_WAITALL)
    if said != RESTORED:
        session.tell_failure(
            Refused(
                "a restore wants its pages on demand",
                subject=str(path),
                cause="only this engine's restores are served, which have them at once",
                remedy="restore without --lazy-pages",
            )
        )
        return 1
    log.info("all pages are in place")
    return 0


@contextmanager
def daemon(work_dir: Path) -> Iterator[None]:
    """Connected to the daemon, which is told when what is inside went well."""
    path = work_dir / NAME
    with socket.socket(socket.AF_UNIX) as connection:
        with translated("connect to", f"{path} (criu lazy-pages)"):
            connection.connect(_short(path))
        yield
        with translated("send to", str(path)):
            connection.sendall(RESTORED)


def _short(path: Path) -> str:
    """A name that fits into an address: 108 bytes, however long the directory's is."""
    return os.path.relpath(path) if len(os.fsencode(path)) > 100 else str(path)

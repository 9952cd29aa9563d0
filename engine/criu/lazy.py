# SPDX-License-Identifier: Apache-2.0
"""`criu lazy-pages`: fills memory that a `restore --lazy-pages` has left out, while its tasks run.

Facts (criu 4.2.1, tried): the daemon listens at lazy-pages.socket in the work directory, where a
restore must find it, takes one restore, and ends with 0 when all pages are in place; the socket's
name stays. --status-fd gets its byte, and scripts the stage `status-ready`, when it listens. With
--page-server it connects there when the restore has come, here at once: a restore does not wait to
hear that nobody is there. Without, pages are in the image directory. A pid file is written only
with -d. What is handed over is in `torpor.engine.lazy.handing`; a restore by CRIU leaves out all
private anonymous memory, which its dumps mark as LAZY, so pages are looked for there.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.engine import logs
from torpor.engine.criu import network, pageserver, session
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.session import Session
from torpor.engine.errors import Error
from torpor.engine.images.failures import translated

if TYPE_CHECKING:
    from torpor.engine.restore.contents import Contents

NAME = "lazy-pages.socket"

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Fill the memory of one restore."""
    from torpor.engine.lazy import handing
    from torpor.engine.lazy.attend import attend  # it takes its time, and a restore waits for us

    begun = session.begin(line)
    server = network.connect(line) if line.flag("page_server") else None
    path = begun.work_dir / NAME
    with socket.socket(socket.AF_UNIX) as listening, translated("listen at", str(path)):
        with suppress(FileNotFoundError):
            path.unlink()
        listening.bind(_short(path))
        listening.listen(1)
        if pageserver.leave(begun):
            return 0
        handing.announce()
        pageserver.tell_ready(begun)
        restore, _ = listening.accept()
    with restore:
        log.info("a restore has come")
        try:
            attend(restore, lambda handed: _fill(begun, handed, server))
        except Error as error:
            session.tell_failure(error)
            return 1
    log.info("all pages are in place")
    return 0


def _fill(begun: Session, handed: socket.socket, server: socket.socket | None) -> int:
    """In the process that fills; its status."""
    try:
        _fill_all(begun, handed, server)
    except Error as error:
        session.tell_failure(error)
        return 1
    return 0


def _fill_all(begun: Session, handed: socket.socket, server: socket.socket | None) -> None:
    from torpor.engine.images.directory import ImageDirectory, Verify
    from torpor.engine.lazy.attend import Queue, fill
    from torpor.engine.restore import waiting
    from torpor.engine.restore.load import open_contents

    with ImageDirectory.open(begun.images_dir, verify=Verify.WITHOUT_PAGES) as images:
        contents = open_contents(images, later=True)
        try:
            if server is None:
                fill(Queue(handed, partial(waiting.in_files, contents)))
            else:
                _fetch(server, handed, contents)
        finally:
            contents.close()


def _fetch(server: socket.socket, handed: socket.socket, contents: "Contents") -> None:
    from torpor.engine.images.pagefetch import PATIENCE_S, Fetcher, notice_death
    from torpor.engine.lazy.attend import Queue, fill
    from torpor.engine.restore import waiting

    notice_death(server, patience_s=PATIENCE_S)
    fetcher = Fetcher(server)
    fill(Queue(handed, partial(waiting.at_server, contents, fetcher)))
    try:
        fetcher.end()
    except Error as error:  # all pages are there
        log.warning("%s", error)


@contextmanager
def daemon(work_dir: Path) -> Iterator[socket.socket]:
    """A connection to the daemon, for a restore."""
    path = work_dir / NAME
    with socket.socket(socket.AF_UNIX) as connection:
        with translated("connect to", f"{path} (criu lazy-pages)"):
            connection.connect(_short(path))
        yield connection


def _short(path: Path) -> str:
    """A name that fits into an address: 108 bytes, however long the directory's is."""
    return os.path.relpath(path) if len(os.fsencode(path)) > 100 else str(path)

# SPDX-License-Identifier: Apache-2.0
"""`criu page-server`: takes the pages of one dump over a connection, or gives them to a restore.

Facts (criu 4.2.1, tried): it serves one connection, writes pagemap and pages files into the image
directory, and exits; with --lazy-pages it reads them, for `criu lazy-pages --page-server`. As a
daemon the pid file has the pid of the one that stays.
"""

import os
import socket
from typing import TYPE_CHECKING

from torpor.engine import logs
from torpor.engine.criu import network, session
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.scripts import Scripts
from torpor.engine.criu.session import Session
from torpor.engine.errors import Error
from torpor.engine.images.failures import translated
from torpor.engine.images.pageserver import Server
from torpor.engine.text import size

if TYPE_CHECKING:
    from torpor.engine.images.pagefetch import Pool

READY = "status-ready"

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Serve one dump."""
    begun = session.begin(line)
    connection = network.given(line)
    listening = network.listen(line) if connection is None else None
    if listening is not None:
        log.info("page server waits at port %d", listening.getsockname()[1])
    if leave(begun):
        return 0
    tell_ready(begun)
    return serve(begun, connection, listening)


def serve(begun: Session, connection: socket.socket | None, listening: socket.socket | None) -> int:
    """Serve one connection, which is given or awaited; the status of the command."""
    try:
        if connection is None:
            assert listening is not None
            connection = network.accept(listening)
        connection = network.secured(connection, begun.line, is_server=True)
        (_give if begun.line.flag("lazy_pages") else _take)(begun, connection)
    except Error as error:
        session.tell_failure(error, "The page server FAILED.")
        return 1
    return 0


def _take(begun: Session, connection: socket.socket) -> None:
    """The pages of a dump."""
    server = Server(begun.images_dir)
    server.serve(connection)
    log.info("page server: %d pages written", server.pages_written)


def _give(begun: Session, connection: socket.socket) -> None:
    """The pages of the images, to a lazy restore."""
    from torpor.engine.images.directory import ImageDirectory, Verify
    from torpor.engine.restore.load import open_contents
    from torpor.engine.restore.waiting import Stored

    with ImageDirectory.open(begun.images_dir, verify=Verify.WITHOUT_PAGES) as images:
        contents = open_contents(images, later=False)
        try:
            give(connection, Stored(contents))
        finally:
            contents.close()


def give(connection: socket.socket, pool: "Pool") -> None:
    """Give pages away until the other side has all.

    Raises: Error when it has not.
    """
    from torpor.engine.images.pagefetch import answer, notice_death

    notice_death(connection)
    served = answer(connection, pool)
    log.info("page server: %s given in %d answers", size(served.size_bytes), served.requests)


def leave(begun: Session) -> bool:
    """Write the pid file; True in the parent of a daemon, which has nothing more to do."""
    if begun.line.flag("daemon") or begun.line.flag("restore_detached"):
        pid = os.fork()
        if pid:
            _write_pid(begun, pid)
            return True
        session.detach()
        return False
    _write_pid(begun, os.getpid())
    return False


def _write_pid(begun: Session, pid: int) -> None:
    path = begun.pidfile
    if path is not None:
        with translated("write the pid", str(path)):
            path.write_text(f"{pid}", encoding="ascii")


def tell_ready(begun: Session) -> None:
    """It can be connected to: scripts, and a zero byte to --status-fd, which is closed."""
    scripts = Scripts(paths=begun.line.all("action_script"), work_dir=begun.work_dir,
                      images_dir=begun.images_dir)  # fmt: skip
    scripts.run(READY)
    tell_status(begun.line)


def tell_status(line: CommandLine) -> None:
    """--status-fd."""
    if line.flag("status_fd"):
        number = line.number("status_fd")
        with translated("write to", f"descriptor {number}"):
            os.write(number, b"\0")
            os.close(number)

# SPDX-License-Identifier: Apache-2.0
"""`criu page-server`: takes the pages of one dump over a connection.

Facts (criu 4.2.1, tried): it serves one connection, writes pagemap and pages files into the image
directory, and exits. As a daemon the pid file has the pid of the one that stays.
"""

import os
import socket

from torpor.engine import logs
from torpor.engine.criu import network, session
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.scripts import Scripts
from torpor.engine.criu.session import Session
from torpor.engine.errors import Error, Refused
from torpor.engine.images.failures import translated
from torpor.engine.images.pageserver import Server

READY = "status-ready"

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Serve one dump."""
    if line.flag("lazy_pages"):
        raise Refused("pages are not served to a restore", subject="--lazy-pages",
                      remedy="restore from the directory of the dump")  # fmt: skip
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
    """Take the pages of one connection, which is given or awaited; the status of the command."""
    server = Server(begun.images_dir)
    try:
        if connection is None:
            assert listening is not None
            connection, peer = listening.accept()
            listening.close()
            log.info("page server: %s connected", peer[0])
        server.serve(network.secured(connection, begun.line, is_server=True))
    except Error as error:
        session.tell_failure(error, "The page server FAILED.")
        return 1
    log.info("page server: %d pages written", server.pages_written)
    return 0


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
    line = begun.line
    if line.flag("action_script"):
        scripts = Scripts(paths=line.all("action_script"), work_dir=begun.work_dir,
                          images_dir=begun.images_dir)  # fmt: skip
        scripts.run(READY)
    if line.flag("status_fd"):
        number = line.number("status_fd")
        with translated("write to", f"descriptor {number}"):
            os.write(number, b"\0")
            os.close(number)

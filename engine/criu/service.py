# SPDX-License-Identifier: Apache-2.0
"""`criu service`: the RPC on a socket with a name, a process for each caller.

Facts (criu 4.2.1, tried): the socket is `criu_service.socket` in the work directory unless
--address names another; only root may connect until its mode is changed, which is told on
stdout. --status-fd gets its zero byte when it can be connected to. The end of the service
leaves the socket there.

What a dump and a restore import is imported before the first caller comes, so a request costs less
than a command. A caller who is not root is served by a process of its own uid and groups.
"""

import errno
import gc
import os
import signal
import socket
import stat
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from torpor.engine import logs
from torpor.engine.criu import pageserver, requests, rpc, session
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.swrk import fill_standard_descriptors
from torpor.engine.errors import Error, Refused
from torpor.engine.images.failures import translated
from torpor.engine.start import leave

DEFAULT_ADDRESS = "criu_service.socket"
BACKLOG = 16
WARM = ("asked", "dump", "restore", "predump", "cpuinfo", "check", "lazy")
"""Modules of this package that requests need."""
ENGINE = ("dump.pipeline", "dump.predump", "restore.launch", "images.dedup")

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Serve until killed."""
    fill_standard_descriptors()
    begun = session.begin(line)
    path = begun.placed(line.last("address", DEFAULT_ADDRESS))
    listening = listen(path)
    sys.stdout.write(
        f"Service socket {path} has permissions 0600. "
        "Use chmod to make it accessible to other users if needed.\n"
    )
    sys.stdout.flush()
    warm()
    if pageserver.leave(begun):
        return 0
    log.info("The service socket is bound to %s", path)
    pageserver.tell_ready(begun)
    while True:
        signal.signal(signal.SIGCHLD, lambda *_: reap())
        connection, _ = listening.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            attend(connection)
        connection.close()


def listen(path: Path) -> socket.socket:
    """A socket that only its owner can connect to.

    Raises: Refused when a service listens there, KernelError, Denied.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with translated("listen at", str(path)):
        _clear(path)
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(mask)
        listening.listen(BACKLOG)
    return listening


def _clear(path: Path) -> None:
    """Take the socket away that a service has left which is no more."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as trial:
            number = trial.connect_ex(str(path))
        if number != errno.ECONNREFUSED:
            raise Refused("another process listens there", subject=str(path),
                          remedy="end it, or give another --address")  # fmt: skip
        path.unlink()


def warm() -> None:
    """Import what requests need, once for all of them."""
    for name in WARM:
        import_module(f"torpor.engine.criu.{name}")
    for name in ENGINE:
        import_module(f"torpor.engine.{name}")
    gc.collect()
    gc.freeze()


def reap() -> None:
    """Take note of processes that have served."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def attend(connection: socket.socket) -> NoReturn:
    """Serve one caller, in a process of its own."""
    status = requests.FAILED
    try:
        conversation = rpc.Conversation(connection, lends=True)
        peer = conversation.peer
        log.info("task %d of uid %d connected", peer.pid, peer.uid)
        if peer.uid != os.geteuid():
            rpc.become(peer, conversation.groups())
        logs.stop()
        status = requests.serve(conversation)
    except Error as error:
        session.tell_failure(error)
    finally:
        leave(status)

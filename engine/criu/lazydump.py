# SPDX-License-Identifier: Apache-2.0
"""`criu dump --lazy-pages`: serves the pages that the images are without.

Facts (criu 4.2.1, tried): it listens at --address and --port when the images are written and the
scripts for post-dump have run; then come the scripts for `status-ready` and the byte to
--status-fd. The tasks stand still, and are ended when the other side has ended the connection,
however much it was given; that may be a restore that was killed, so here they run on unless the
other side says that it has what it wants.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torpor.engine.criu import network, pageserver
from torpor.engine.criu.parse import CommandLine
from torpor.engine.criu.scripts import Scripts

if TYPE_CHECKING:
    from torpor.engine.images.pagefetch import Pool


@contextmanager
def server(line: CommandLine, pid: int, scripts: Scripts) -> Iterator["Callable[[Pool], None]"]:
    """What serves the pages of a tree. It has its port from the beginning, before anything is done.

    Raises: Refused, KernelError.
    """
    network.check(line)
    opened = network.given(line) or network.listen(line)

    def serve(pool: "Pool") -> None:
        scripts.run(pageserver.READY, pid)
        pageserver.tell_status(line)
        connection = opened if line.flag("ps_socket") else network.accept(opened)
        with network.secured(connection, line, is_server=True) as secured:
            pageserver.give(secured, pool)

    with opened:
        yield serve

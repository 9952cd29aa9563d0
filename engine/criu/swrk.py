# SPDX-License-Identifier: Apache-2.0
"""`criu swrk FD`: the RPC on a socket that the caller has given us, for one caller.

Facts (criu 4.2.1, tried): runc, crun and pycriu start it once for a request. pycriu closes 0, 1 and
2 before; they are filled here, so that no log or image comes to stand where a task has its output.
"""

import os
import socket
import sys

from torpor.engine.criu.parse import BadUsage, CommandLine
from torpor.engine.images.failures import translated


def run(line: CommandLine) -> int:
    """Answer on the descriptor; the status of the last request."""
    if len(line.words) != 1 or not line.words[0].isdecimal():
        raise BadUsage("wants the number of a descriptor", subject="criu swrk", remedy="swrk FD")
    fill_standard_descriptors()
    from torpor.engine.criu import requests, rpc

    with translated("use", f"descriptor {line.words[0]}"):
        connection = socket.socket(fileno=int(line.words[0]))
        connection.set_inheritable(False)
    return requests.serve(rpc.Conversation(connection))


def fill_standard_descriptors() -> None:
    """Open /dev/null where nothing is open, and print there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))

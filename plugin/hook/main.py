# SPDX-License-Identifier: Apache-2.0
"""The hook as a program of its own, for nodes whose agent does not serve it.

    python -m torpor.plugin.hook.main [--directory D] [--nri-socket S] [--client PROGRAM]

The API server is found as kubectl finds it, or as a pod does; NODE_NAME names the node.
"""

import argparse
import logging
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from torpor.plugin.hook.backend import ApiBackend
from torpor.plugin.hook.run import HookSettings, running
from torpor.plugin.hook.server import HOOK_DIRECTORY
from torpor.plugin.k8s.client import connect


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    settings = HookSettings(
        directory=options.directory,
        node_directory=options.node_directory,
        nri_socket=options.nri_socket,
        client=options.client,
    )
    backend = ApiBackend(connect(user_agent="torpor-hook"), options.node)
    with running(settings, backend):
        ended.wait()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torpor-hook-server")
    parser.add_argument("--client", type=Path, default=None, help="the static client to install")
    parser.add_argument("--directory", type=Path, default=HOOK_DIRECTORY)
    parser.add_argument("--node-directory", default=str(HOOK_DIRECTORY))
    parser.add_argument("--nri-socket", type=Path, default=None)
    parser.add_argument("--node", default=os.environ.get("NODE_NAME", ""))
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

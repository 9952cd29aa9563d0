# SPDX-License-Identifier: Apache-2.0
"""The runtime hook of a node: both sockets, and the client that containers find beside them.

The directory of the sockets (/run/torpor-hook, shared with the node) also gets the static client,
so that one bind mount gives a container all that it needs:

    /run/torpor-hook/hook.sock      gRPC
    /run/torpor-hook/packet.sock    packets, for the client
    /run/torpor-hook/torpor-hook    the client
"""

import logging
import shutil
from pathlib import Path

from torpor.plugin.hook.backend import Backend
from torpor.plugin.hook.caller import Waiting
from torpor.plugin.hook.grpcfront import GrpcFront
from torpor.plugin.hook.packets import PacketFront

log = logging.getLogger(__name__)

HOOK_DIRECTORY = Path("/run/torpor-hook")
GRPC_SOCKET = "hook.sock"
PACKET_SOCKET = "packet.sock"
CLIENT = "torpor-hook"


class HookServer:
    """A running hook; also a context manager.

    ``waiting.pids_in(container_id)`` are the processes of a container that only wait for their
    checkpoint: the agent takes the container's tree without them.
    """

    def __init__(self, socket_path: Path, backend: Backend) -> None:
        self.socket_path = socket_path
        self.packet_path = socket_path.with_name(PACKET_SOCKET)
        self.waiting = Waiting()
        self._packets = PacketFront(self.packet_path, backend, self.waiting)
        self._grpc = GrpcFront(socket_path, backend, self.waiting)

    def start(self) -> None:
        """Begin to answer."""
        self._packets.start()
        self._grpc.start()
        log.info("hook: listens at %s and %s", self.socket_path, self.packet_path)

    def stop(self) -> None:
        """End, and take the sockets away."""
        self._grpc.stop()
        self._packets.stop()

    def __enter__(self) -> "HookServer":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


def serve(socket_path: Path, backend: Backend) -> HookServer:
    """Start the hook in threads of its own; the caller stops it."""
    server = HookServer(socket_path, backend)
    server.start()
    return server


def install_client(program: Path, directory: Path = HOOK_DIRECTORY) -> Path:
    """Put the static client beside the sockets, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    target = directory / CLIENT
    fresh = directory / f".{CLIENT}.new"
    shutil.copyfile(program, fresh)
    fresh.chmod(0o555)
    fresh.replace(target)
    return target

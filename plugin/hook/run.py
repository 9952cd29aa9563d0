# SPDX-License-Identifier: Apache-2.0
"""The whole hook of a node, as the agent starts it: client installed, sockets, NRI if wanted.

Environment: ``TORPOR_HOOK_DIR``, the directory that is shared with the node (empty: no hook);
``TORPOR_NRI_SOCKET``, the runtime's NRI socket (empty: annotated pods must mount the hook's
directory themselves).
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from torpor.plugin.hook.backend import Backend
from torpor.plugin.hook.nri import NriPlugin, NriSettings
from torpor.plugin.hook.server import (
    CLIENT,
    GRPC_SOCKET,
    HOOK_DIRECTORY,
    HookServer,
    install_client,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HookSettings:
    """Where the hook is; ``node_directory`` is its directory as the runtime sees it."""

    directory: Path = HOOK_DIRECTORY
    node_directory: str = str(HOOK_DIRECTORY)
    nri_socket: Path | None = None
    client: Path | None = None


def settings_from(environment: Mapping[str, str]) -> HookSettings | None:
    """What the environment asks for; None when there shall be no hook."""
    directory = environment.get("TORPOR_HOOK_DIR", "")
    nri_socket = environment.get("TORPOR_NRI_SOCKET", "")
    if not directory:
        return None
    return HookSettings(
        directory=Path(directory), nri_socket=Path(nri_socket) if nri_socket else None
    )


@contextlib.contextmanager
def running(settings: HookSettings, backend: Backend) -> Iterator[HookServer]:
    """Serve for as long as this lasts."""
    if settings.client is not None:
        install_client(settings.client, settings.directory)
    else:
        blob = resources.files("torpor.engine") / "blobs" / CLIENT
        with resources.as_file(blob) as program:
            install_client(program, settings.directory)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(HookServer(settings.directory / GRPC_SOCKET, backend))
        if settings.nri_socket is not None:
            plugin = NriPlugin(
                NriSettings(
                    socket=settings.nri_socket,
                    directory=settings.directory,
                    node_directory=settings.node_directory,
                )
            )
            plugin.start()
            stack.callback(plugin.stop)
        yield server

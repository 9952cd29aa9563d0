# SPDX-License-Identifier: Apache-2.0
"""What a store is: checkpoints go in whole or not at all, and come out verified.

The first kind is a mounted volume (`volume.py`). Whatever comes later keeps this face.
"""

from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from torpor.engine.errors import Error, Vanished
from torpor.engine.options import ProgressFn
from torpor.plugin.store.manifest import CheckpointRef, Head, Manifest


class StoreFailed(Error):
    """The store did not take or give the data; nothing half-written counts."""

    exit_code = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTree:
    """A directory of regular files and what is to be said about them."""

    root: Path
    head: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredManifest:
    """A committed checkpoint. ``stored_bytes`` counts compressed chunks, shared ones too."""

    ref: CheckpointRef
    manifest: Manifest
    digest: str
    size_bytes: int
    stored_bytes: int


class Cancel:
    """Lets another thread end a transfer between two chunks."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        """Ask for the end."""
        self._event.set()

    def check(self) -> None:
        """Raise if the end was asked for."""
        if self._event.is_set():
            raise Vanished("the transfer was called off", remedy="start it again")


class Store(Protocol):
    """Holds checkpoints. Every method raises `StoreFailed` when the store itself fails."""

    def put(
        self,
        ref: CheckpointRef,
        tree: SourceTree,
        progress: ProgressFn,
        *,
        cancel: Cancel | None = None,
    ) -> StoredManifest:
        """Take a tree; may be called again after a failure and goes on where it was."""
        ...

    def verify(
        self, ref: CheckpointRef, *, digest: str | None = None, cancel: Cancel | None = None
    ) -> StoredManifest:
        """Read all of it back.

        Raises:
            BadImage: something is missing or changed, or it is not the one of ``digest``.
        """
        ...

    def get(
        self,
        ref: CheckpointRef,
        into: Path,
        progress: ProgressFn,
        *,
        digest: str | None = None,
        cancel: Cancel | None = None,
    ) -> StoredManifest:
        """Write its files into a new directory, verifying every byte on the way."""
        ...

    def delete(self, ref: CheckpointRef) -> int:
        """Remove it, if it is there, and what only it used; gives the bytes freed."""
        ...

    def sweep(self) -> int:
        """Remove what no checkpoint uses and nothing touched for long; gives the bytes freed."""
        ...

    def list(self) -> tuple[CheckpointRef, ...]:
        """Every committed checkpoint."""
        ...

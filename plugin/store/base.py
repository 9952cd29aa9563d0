# SPDX-License-Identifier: Apache-2.0
"""What a store is: checkpoints go in whole or not at all, and come out verified.

The first kind is a mounted volume (`volume.py`). Whatever comes later keeps this face.
"""

from collections.abc import Callable, Set
from contextlib import AbstractContextManager
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
    """Lets another thread end a transfer between two chunks; ``also`` may raise as well."""

    def __init__(self, also: Callable[[], None] = lambda: None) -> None:
        self._event = Event()
        self._also = also

    def set(self) -> None:
        """Ask for the end."""
        self._event.set()

    def check(self) -> None:
        """Raise if the end was asked for."""
        if self._event.is_set():
            raise Vanished("the transfer was called off", remedy="start it again")
        self._also()


@dataclass(frozen=True, slots=True, kw_only=True)
class Precedence:
    """Files that may come last, and what to do when all others are there."""

    is_late: Callable[[str], bool]
    when_early: Callable[[Manifest], None]


class Upload(Protocol):
    """A checkpoint on its way into a store; files may come while they are still written."""

    @property
    def verified(self) -> Set[str]:
        """Digests of the chunks that were read back."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Plain bytes that are in the store by now."""
        ...

    def grown(self, path: str, fd: int, size_bytes: int, *, whole: bool = False) -> None:
        """Take what is new of a file, in its tree's ``path``: so many bytes are final.

        What was stored of it is taken out of the file, which keeps its size. Waits while too much
        waits to be stored.
        """
        ...

    def forget(self, folder: str) -> None:
        """Files whose path begins so are written anew; chunks of theirs may be needed again."""
        ...

    def catch_up(self) -> None:
        """Wait until all that was told of is stored."""
        ...

    def commit(self, tree: SourceTree) -> StoredManifest:
        """Take the rest of the tree and write the manifest."""
        ...


class Store(Protocol):
    """Holds checkpoints. Every method raises `StoreFailed` when the store itself fails."""

    def upload(
        self, ref: CheckpointRef, progress: ProgressFn, *, cancel: Cancel | None = None
    ) -> AbstractContextManager[Upload]:
        """Begin to take a checkpoint; may be done again after a failure, and goes on there."""
        ...

    def put(
        self,
        ref: CheckpointRef,
        tree: SourceTree,
        progress: ProgressFn,
        *,
        cancel: Cancel | None = None,
    ) -> StoredManifest:
        """Take a whole tree, as an upload does."""
        ...

    def verify(
        self,
        ref: CheckpointRef,
        *,
        digest: str | None = None,
        known: Set[str] = frozenset(),
        cancel: Cancel | None = None,
    ) -> StoredManifest:
        """Read all of it back, but for chunks that are ``known`` to be good.

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
        precedence: Precedence | None = None,
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

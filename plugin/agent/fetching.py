# SPDX-License-Identifier: Apache-2.0
"""The way of one checkpoint out of its store, beside the rest of a restore.

Memory comes last and is needed last: when all else is there, the restore goes on beside it.
"""

import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from torpor.engine.options import ProgressFn
from torpor.plugin.agent.context import BesideIt, Deadline
from torpor.plugin.store.base import Cancel, Precedence, Store, StoredManifest
from torpor.plugin.store.manifest import CheckpointRef, Manifest

_LOOK_S = 0.05
_LEAVE_S = 10.0


@dataclass(slots=True, kw_only=True)
class Fetching:
    """To be used in a ``with``; without `whole` what comes is of no use."""

    store: Store
    ref: CheckpointRef
    digest: str
    into: Path
    deadline: Deadline
    progress: ProgressFn
    _work: BesideIt[StoredManifest] = field(init=False)
    _early: threading.Event = field(default_factory=threading.Event, init=False)
    _manifest: Manifest = field(init=False)

    def __enter__(self) -> Self:
        cancel = Cancel()
        self._work = self.deadline.begin("fetching", lambda: self._fetch(cancel), cancel)
        return self

    def __exit__(self, *_: object) -> None:
        self._work.call_off(_LEAVE_S)

    def early(self) -> Manifest:
        """Wait until all but pages is there.

        Raises:
            Error: it cannot be fetched, or not in time.
        """
        while not self._early.wait(_LOOK_S):
            if self._work.is_over and not self._early.is_set():
                self._work.result()
            self.deadline.check("fetching")
        return self._manifest

    def whole(self) -> StoredManifest:
        """Wait until everything is there; raises as `early`."""
        return self._work.result()

    def _fetch(self, cancel: Cancel) -> StoredManifest:
        return self.store.get(
            self.ref,
            self.into,
            self.progress,
            digest=self.digest,
            precedence=Precedence(is_late=is_pages, when_early=self._tell),
            cancel=cancel,
        )

    def _tell(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._early.set()


def is_pages(path: str) -> bool:
    """Whether a file of a checkpoint is needed only to fill memory."""
    place = PurePosixPath(path)
    return place.parts[0] == "images" and place.name.startswith("pages-")

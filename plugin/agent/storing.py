# SPDX-License-Identifier: Apache-2.0
"""The way of one checkpoint into its store: begun before the dump, ended with a checked manifest.

What may hang with the store runs in a thread, under the job's deadline.
"""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from torpor.engine.options import Progress, ProgressFn
from torpor.plugin.agent.context import Deadline
from torpor.plugin.agent.following import Following
from torpor.plugin.agent.treefile import DATA, Grown
from torpor.plugin.store.base import Cancel, SourceTree, Store, StoredManifest, Upload
from torpor.plugin.store.manifest import CheckpointRef

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Storing:
    """To be used in a ``with``, around the dump and the commit."""

    store: Store
    ref: CheckpointRef
    deadline: Deadline
    progress: ProgressFn
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    """What the steps have taken."""
    _cancel: Cancel = field(init=False)
    _upload: Upload | None = field(default=None, init=False)
    _cleanup: ExitStack = field(default_factory=ExitStack, init=False)

    def __post_init__(self) -> None:
        """See that nothing waits longer than the job may."""
        self._cancel = Cancel(also=lambda: self.deadline.check("storing"))

    def __enter__(self) -> Self:
        self._upload = self.deadline.run("opening the store", self._open, self._cancel)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._cancel.set()
        self._cleanup.close()

    @property
    def upload(self) -> Upload:
        """What takes the files."""
        assert self._upload is not None
        return self._upload

    def following(self, folder: str) -> Following:
        """Who takes the images in a directory of the tree while they are written."""
        return Following(upload=self.upload, folder=folder)

    def archiving(self, folder: str) -> Grown:
        """Who takes the data of an archive of files while it is written."""
        path = f"{folder}/{DATA}"
        return lambda fd, size_bytes, whole: self.upload.grown(path, fd, size_bytes, whole=whole)

    def commit(self, tree: SourceTree) -> StoredManifest:
        """Take what is not there yet, write the manifest, read back what was not read before."""
        return self.deadline.run("storing", lambda: self._commit(tree), self._cancel)

    def _open(self) -> Upload:
        return self._cleanup.enter_context(
            self.store.upload(self.ref, self.progress, cancel=self._cancel)
        )

    def _commit(self, tree: SourceTree) -> StoredManifest:
        begin_s = time.monotonic()
        put = self.upload.commit(tree)
        put_s = time.monotonic()
        self.progress(Progress(phase="verifying"))
        found = self.store.verify(
            self.ref, digest=put.digest, known=self.upload.verified, cancel=self._cancel
        )
        self.seconds = {"store": put_s - begin_s, "verify": time.monotonic() - put_s}
        return found

# SPDX-License-Identifier: Apache-2.0
"""What the engine tells of a container's images goes into an upload (`engine.options.Follower`)."""

from dataclasses import dataclass

from torpor.plugin.store.base import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """Follows the images in one directory of the checkpoint's tree."""

    upload: Upload
    folder: str

    def begin(self) -> None:
        """See `Follower`."""
        self.upload.forget(f"{self.folder}/")

    def grown(self, name: str, fd: int, size_bytes: int, *, whole: bool = False) -> None:
        """See `Follower`."""
        self.upload.grown(f"{self.folder}/{name}", fd, size_bytes, whole=whole)

    def catch_up(self) -> None:
        """See `Follower`."""
        self.upload.catch_up()

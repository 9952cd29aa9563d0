# SPDX-License-Identifier: Apache-2.0
"""--action-script: programs of the user that run at stages of a dump or restore.

Facts (criu 4.2.1, tried): a script is executed without arguments in the work directory (so that is
where a relative path starts), each of several at each stage, in the order given, the others too
when one has failed. It gets CRTOOLS_SCRIPT_ACTION, CRTOOLS_IMAGE_DIR and, when there is a root,
CRTOOLS_INIT_PID. Stages of a dump: pre-dump (nothing is touched), post-dump (images are whole,
tasks still stopped); of a restore: pre-restore, post-restore (all is made, nothing runs),
pre-resume, post-resume. What fails before pre-resume ends the command: before the dump with
status 1, after it with 255 and the tasks run on; a half-restored tree is killed. Failing later is
only told. network-lock, network-unlock, setup-namespaces and post-setup-namespaces are run only
where namespaces of the tree are dumped or made.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torpor.engine import logs
from torpor.engine.criu.session import tell_failure
from torpor.engine.errors import Refused

log = logs.logger(__name__)

Notify = Callable[[str, int | None], frozenset[str] | None]
"""Tells a caller of a stage; what it names as external, or None when it gives the command up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripts:
    """The scripts of a command line, and what they are told."""

    paths: Sequence[str]
    work_dir: Path
    images_dir: Path
    notify: Notify | None = None

    @property
    def any(self) -> bool:
        """Whether anybody wants to know of stages."""
        return bool(self.paths) or self.notify is not None

    def externals(self) -> frozenset[str]:
        """What the caller names as external when it is asked (stage query-ext-files of the RPC)."""
        return self._notify("query-ext-files", None) if self.notify is not None else frozenset()

    def run(self, stage: str, root: int | None = None) -> None:
        """Run each for a stage.

        Raises: Refused when one of them fails.
        """
        if self.any:
            log.info("Running %s scripts", stage)
        if self.notify is not None:
            self._notify(stage, root)
        failed = [cause for path in self.paths if (cause := self._run_one(path, stage, root))]
        if failed:
            raise Refused("an action script failed", subject=f"stage {stage}",
                          cause="; ".join(failed), remedy="see what it says itself")  # fmt: skip

    def run_leniently(self, stage: str, root: int | None = None) -> None:
        """Run each for a stage that can no longer be undone: a failure is only told."""
        try:
            self.run(stage, root)
        except Refused as error:
            tell_failure(error)

    def _notify(self, stage: str, root: int | None) -> frozenset[str]:
        assert self.notify is not None
        named = self.notify(stage, root)
        if named is None:
            raise Refused("the caller gave it up", subject=f"stage {stage}",
                          remedy="have it answer the notification with notify_success")  # fmt: skip
        return named

    def _run_one(self, path: str, stage: str, root: int | None) -> str:
        """Why it failed; empty when it did not."""
        import subprocess  # slow to import, not always needed

        environment = {
            **os.environ, "CRTOOLS_SCRIPT_ACTION": stage, "CRTOOLS_IMAGE_DIR": str(self.images_dir),
        }  # fmt: skip
        if root is not None:
            environment["CRTOOLS_INIT_PID"] = str(root)
        try:
            status = subprocess.run(
                [path], cwd=self.work_dir, env=environment, check=False
            ).returncode
        except OSError as error:
            return f"{path} cannot be executed: {error.strerror}"
        if status < 0:
            return f"{path} was killed by signal {-status}"
        return f"{path} exited with {status}" if status else ""

# SPDX-License-Identifier: Apache-2.0
"""The agent's working directory: one folder a job, and what a later life must know of it.

<staging>/<uid of the object>/job.json    attempts so far, cgroups that may be frozen
<staging>/<uid of the object>/tree/       what goes to or came from the store
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torpor.engine.kernel import freezer

_log = logging.getLogger(__name__)
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9]{0,62}")


class JobFolder:
    """The folder of one job."""

    def __init__(self, staging: Path, uid: str) -> None:
        if not _UID.fullmatch(uid):
            raise ValueError(f"{uid!r} is no uid")
        self.path = staging / uid
        self.tree = self.path / "tree"

    def begin(self) -> int:
        """Empty it, and count an attempt; gives its number, from 1."""
        attempt = _attempts(self.path) + 1
        self.empty()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write(attempt, ())
        return attempt

    def remember_cgroups(self, cgroups: Iterable[Path]) -> None:
        """Note what is about to be frozen."""
        self._write(_attempts(self.path), cgroups)

    def empty(self) -> None:
        """Remove the data and keep the count."""
        shutil.rmtree(self.tree, ignore_errors=True)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, attempts: int, cgroups: Iterable[Path]) -> None:
        text = json.dumps({"attempts": attempts, "cgroups": [str(each) for each in cgroups]})
        temporary = self.path / "job.json.new"
        temporary.write_text(text)
        temporary.rename(self.path / "job.json")


def recover(staging: Path) -> list[str]:
    """At the start: thaw what a former life left frozen and free its space.

    The counts of attempts stay, until `forget`. Gives the uids of the jobs.
    """
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = []
    for path in staging.iterdir():
        if not _UID.fullmatch(path.name) or not path.is_dir():
            continue
        found.append(path.name)
        for cgroup in _cgroups(path):
            with suppress(Exception):
                if freezer.thaw_leftover(cgroup):
                    _log.warning("%s: was left frozen, thawed", cgroup)
        shutil.rmtree(path / "tree", ignore_errors=True)
    return found


def forget(staging: Path, uids: Iterable[str]) -> None:
    """Remove what is left of jobs that nobody will take up again."""
    for uid in uids:
        JobFolder(staging, uid).remove()


def _attempts(path: Path) -> int:
    found = _read(path).get("attempts")
    return found if isinstance(found, int) else 0


def _cgroups(path: Path) -> list[Path]:
    found = _read(path).get("cgroups")
    return [Path(str(each)) for each in found] if isinstance(found, list) else []


def _read(path: Path) -> dict[str, object]:
    try:
        document = json.loads((path / "job.json").read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}

# SPDX-License-Identifier: Apache-2.0
"""What is expensive to make, kept outside the checkout under a key of what it is made from.

An entry is built under a temporary name and renamed when whole, so that it is either complete or
not there. A lock per entry keeps two runs from building the same; whoever holds it may delete a
half-built one, which only a killed run can have left.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def home() -> Path:
    """The cache's directory: TORPOR_CACHE, or else torpor in the user's cache directory."""
    chosen = os.environ.get("TORPOR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "torpor"


def key(inputs: Mapping[str, object]) -> str:
    """A short digest of what an entry is made from."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entry_path(kind: str, inputs: Mapping[str, object]) -> Path:
    """Where the entry is, or would be."""
    return home() / f"{kind}-{key(inputs)}"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock of that name; another run that wants it waits."""
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def entry(kind: str, inputs: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """The entry made from these inputs, built first if it is not there.

    Args:
        kind: first part of its name.
        inputs: everything the result depends on; also written beside it for the reader.
        build: makes the entry (a file or a directory) at the path that it is given.
    """
    path = entry_path(kind, inputs)
    if path.exists():
        os.utime(path)
        return path
    with locked(path.name):
        if path.exists():
            return path
        partial = path.with_name(f"partial-{path.name}")
        remove(partial)
        try:
            build(partial)
        except BaseException:
            remove(partial)
            raise
        content = {"inputs": inputs, "size_bytes": _size_bytes(partial)}
        _note(path).write_text(json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")
        partial.rename(path)
    return path


def remove(path: Path) -> None:
    """Removes a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prune(kinds: Sequence[str], budget_bytes: int) -> None:
    """Removes what was not asked for longest, until entries of these kinds fit into a budget.

    What was asked for within the hour stays, because another run may be using it.
    """
    oldest_in_use = time.time() - 3600
    entries = [
        (path.lstat().st_mtime, path, _noted_size_bytes(path))
        for kind in kinds
        for path in home().glob(f"{kind}-*")
        if path.suffix != ".json"
    ]
    total = sum(size for _, _, size in entries)
    for used, path, size in sorted(entries):
        if total <= budget_bytes or used > oldest_in_use:
            break
        remove(path)
        remove(_note(path))
        total -= size
    for kind in kinds:
        for partial in home().glob(f"partial-{kind}-*"):
            if partial.lstat().st_mtime < oldest_in_use:
                remove(partial)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.inputs.json")


def _noted_size_bytes(path: Path) -> int:
    try:
        return int(json.loads(_note(path).read_text())["size_bytes"])
    except (FileNotFoundError, KeyError, ValueError):
        return _size_bytes(path)


def _size_bytes(path: Path) -> int:
    """What it takes on disk."""
    if not path.is_dir():
        return path.stat().st_blocks * 512
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*"))


def digest_of(*paths: Path) -> str:
    """A digest of the content of files, for use among an entry's inputs."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()

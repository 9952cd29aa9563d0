# SPDX-License-Identifier: Apache-2.0
"""Where the names of unix sockets are: read from a live one.

Facts:
- What bind(2) made is found wherever it was moved to (`kernel/boundfile.py`), with the right to
  ask. Without it only the name itself can be looked at: a file that is not there, or another,
  is a name that is gone; a relative name must be in the directory where the task is.
- The file of what was accepted is the listener's.
"""

from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

from torpor.engine.kernel import netlink
from torpor.engine.kind import BoundFile, DumpContext, FdView, Limit, refuse
from torpor.engine.sockets.unix_state import NOWHERE, Place, is_path, readable

FILES = "unix.files"

RELATIVE = Limit(
    case="unix-relative",
    what="this unix socket is bound to a relative path and its directory is not known",
    remedy="bind to an absolute path, stay in the directory of the socket, or run with "
    "CAP_NET_ADMIN",
)


@runtime_checkable
class KnowsPaths(Protocol):
    """A view that knows more of the task's paths than `FdView` asks for."""

    @property
    def cwd(self) -> str:
        """Text of /proc/PID/cwd."""

    def path_perms(self, path: str) -> tuple[int, int, int] | None:
        """Mode, uid and gid of what is at a path."""


def read(
    view: FdView, name: bytes, known: netlink.UnixSocket | None, context: DumpContext
) -> Place:
    """Where the file of a name is. Raises Refused when that is not to be known."""
    if not is_path(name):
        return NOWHERE
    file = known.vfs[0] if known is not None and known.vfs is not None else 0
    text = name.decode("utf-8", "surrogateescape")
    files: dict[int, BoundFile | None] = context.cache.setdefault(FILES, {})
    if file not in files or not file:
        files[file] = view.bound_file()
        _tell_of_lost_names(files[file], view, context)
    found = files[file]
    return _by_name(view, name, file) if found is None else _by_file(view, text, file, found)


def closest_folder(view: FdView, name: bytes) -> str:
    """Of a path that need not be there: the closest directory that is."""
    if name[:1] != b"/":
        return ""
    parents = map(str, PurePosixPath(name.decode("utf-8", "surrogateescape")).parents)
    return next((one for one in parents if view.path_stat(one) is not None), "/")


def _by_file(view: FdView, text: str, file: int, found: BoundFile) -> Place:
    now = found.paths[0] if found.paths else found.was
    directory = ""
    if not text.startswith("/") and now.endswith(f"/{text}"):
        directory = now.removesuffix(f"/{text}") or "/"
    full = text if text.startswith("/") else str(PurePosixPath(directory) / text)
    at, links = "", found.paths[1:]
    status = view.path_stat(full) if full.startswith("/") else None
    if status is None or status[1] != file:
        at = found.paths[0] if found.paths else ""
    elif full in found.paths:
        links = tuple(path for path in found.paths if path != full)
    return Place(
        directory=directory, at=at, links=links, deleted=not found.paths, file=file,
        folder="" if found.paths else found.folder,
        mode=found.mode, uid=found.uid, gid=found.gid,
    )  # fmt: skip


def _by_name(view: FdView, name: bytes, file: int) -> Place:
    """Without the right to ask for the file."""
    text, directory = name.decode("utf-8", "surrogateescape"), ""
    status = view.path_stat(text)
    if not text.startswith("/"):
        if status is None or not isinstance(view, KnowsPaths):
            raise refuse(RELATIVE, view.subject, f"name is {readable(name)}")
        directory = view.cwd
    deleted = bool(file) and (status is None or status[1] != file)
    folder = closest_folder(view, name) if deleted else ""
    place = Place(directory=directory, deleted=deleted, file=file, folder=folder)
    perms = view.path_perms(text) if isinstance(view, KnowsPaths) and not deleted else None
    if perms is None:
        return place
    mode, uid, gid = perms
    return Place(directory=directory, file=file, mode=mode, uid=uid, gid=gid)


def _tell_of_lost_names(found: BoundFile | None, view: FdView, context: DumpContext) -> None:
    if found is not None and found.links > len(found.paths):
        lost = found.links - len(found.paths)
        context.warn(f"{view.subject}: {lost} names of its file were not found, and are lost")

# SPDX-License-Identifier: Apache-2.0
"""Files that were opened by a name that is gone, while others of the inode are left.

Facts: which those are is kept nowhere. With --link-remap the file is given one more name until it
is restored, as CRIU does it; without, another is looked for near the old one. To copy the file
would cut the link, so that is done for read-only descriptions only, with a warning.
"""

from pathlib import PurePosixPath

from torpor.engine.files import ghost as ghosts
from torpor.engine.files import revive
from torpor.engine.files.common import FileType, O, file_type
from torpor.engine.files.ghost import DELETED, Ghost
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import DumpContext, FdView, FileId, ImageSink, Limit, refuse

LINKED_ELSEWHERE = Limit(
    case="unlinked-with-other-names",
    what="it is open under a name that is gone, and its other names are not found",
    remedy="give it a name for the checkpoint (--link-remap), or have the program close it",
)
UNREACHABLE = Limit(
    case="unreachable-path",
    what="its path does not lead to it",
    remedy="unmount what covers it, or have the program close it",
)
NAME_ID = 0x20000000
"""Added to the number of a ghost with another name: the id of the REG entry of that name."""


def take(view: FdView, context: DumpContext, path: str) -> Ghost | None:
    """The ghost of a file with another name; None when it must be copied."""
    if not view.link.endswith(DELETED):
        raise refuse(UNREACHABLE, view.subject)

    def make(number: int) -> Ghost:
        return Ghost(number=number, path=path, mode=view.st_mode,
                     missing=ghosts.missing(view, path), dev=view.st_dev & 0xFFFFFFFF,
                     ino=view.st_ino, link=_other_name(view, context, path, number))  # fmt: skip

    ghost = ghosts.once(view, context, make)
    if ghost.link is not None or ghost.chunks:
        return ghost
    if view.flags & O.ACCMODE or file_type(view.st_mode) != FileType.REGULAR:
        raise refuse(LINKED_ELSEWHERE, view.subject, f"{view.st_nlink} names are left")
    context.warn(f"{view.subject}: comes back as a copy of its own; it has other names now")
    context.cache["ghosts"].pop((view.st_dev, view.st_ino))
    return None


def _other_name(view: FdView, context: DumpContext, path: str, number: int) -> str | None:
    """One that is made for the checkpoint when that is permitted, or one that is found."""
    folder = str(PurePosixPath(path).parent)
    if context.link_remap and view.path_stat(folder) is not None:
        names = (
            str(PurePosixPath(folder, f"{revive.REMAP_PREFIX}{i}")) for i in range(number, 1 << 30)
        )
        name = next(name for name in names if view.path_stat(name) is None)
        context.links.append((view, name))
        return name
    return view.other_name(folder)


def encode_remap(file_id: FileId, ghost: Ghost, images: ImageSink) -> None:
    """CRIU removes the other name after its restore, so it is told only of one made for it."""
    remap = pb.remap_file_path_entry(orig_id=file_id, remap_id=ghost.number)
    remap.remap_type = pb.GHOST
    if ghost.link is not None:
        images.extra("regular", f"{file_id} link", [ghost.number, ghost.link, ghost.missing])
        if not revive.is_remap(ghost.link):
            return
        remap.remap_id, remap.remap_type = NAME_ID + ghost.number, pb.LINKED
    images.add("remap-fpath", remap)

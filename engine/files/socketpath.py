# SPDX-License-Identifier: Apache-2.0
"""O_PATH descriptors of the file that a unix socket is bound to.

Facts (probed on v6.18):
- Such a descriptor leads to the inode that bind(2) has made. A restore binds anew, which makes
  another one: so it is opened when all sockets of the tree have their names (`kinds.PLANNED_LAST`),
  and not before, when it would lead to a file that is gone.
- What was bound by nobody of the tree is opened at its name as any file.
- A file whose name is gone is made again as a ghost (`regular`): it leads to no socket.
- It cannot be sent while sockets are made, so one in flight is refused by them.

Source: net/unix/af_unix.c, unix_bind_bsd (v6.18). CRIU: reg_file_entry.
"""

from collections.abc import Mapping, Sequence

from torpor.engine.asking import Questions
from torpor.engine.files import regular
from torpor.engine.files.common import FileType, O, file_type
from torpor.engine.files.linked import UNREACHABLE
from torpor.engine.files.regular import Regular, RegularKind
from torpor.engine.kind import (
    FdView,
    FileId,
    FileKind,
    ImageSource,
    LateOp,
    Limit,
    PlanContext,
)

LIMITS = (regular.NO_REPLACEMENT, UNREACHABLE)


class SocketPathKind(RegularKind):
    """Those whose path leads to a socket."""

    name = "path of a socket"
    types: Sequence[str] = ("REG",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By flags and type, where the name is still that of the file."""
        is_socket = view.flags & O.PATH and file_type(view.st_mode) == FileType.SOCKET
        return bool(is_socket) and view.path_stat(view.link) == (view.st_dev, view.st_ino)

    def questions(self, view: FdView) -> Questions | None:
        """None."""
        del view
        return None

    def decode(self, images: ImageSource) -> Mapping[FileId, Regular]:
        """REG entries with O_PATH and the type of a socket."""
        gone = regular.ghosted(images)
        return {
            file_id: regular.parse(file_id, message, images)
            for file_id, message in images.files("REG")
            if regular.owner_kind(message) == self.name
            and file_id not in gone
            and not regular.is_linked(file_id, images)
        }

    def late(self, states: Mapping[FileId, Regular], context: PlanContext) -> Sequence[LateOp]:
        """Nothing: O_PATH has no signal owner."""
        del states, context
        return ()


KIND: FileKind[Regular] = SocketPathKind()

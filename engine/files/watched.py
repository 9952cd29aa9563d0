# SPDX-License-Identifier: Apache-2.0
"""What inotify and fanotify watch: an inode, known by device, number and file handle.

Facts (probed on v6.18):
- fdinfo prints the kernel's own dev_t (20 bits of minor), and the handle as bytes. The path is
  looked for by the view.
- A deleted file that a task of the tree has open is watched on; it is then reached by the link in
  /proc of its descriptor, and `file` says which that is.

Source: fs/notify/fdinfo.c (v6.18).
"""

from dataclasses import dataclass
from typing import Any

from torpor.engine.files.common import mapped, path_bytes, path_from
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import DumpContext, FdView, FileId, Limit, PlanContext, refuse

HANDLE_WORDS = 16
MINOR_BITS = 20
FILE_HANDLE = r"(?:\s+fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+))?"

NO_PATH = Limit(
    case="watch-without-path",
    what="the path of a watch cannot be found",
    remedy="run with CAP_DAC_READ_SEARCH, or remove the watch of the deleted file",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """``handle`` as fdinfo prints it; ``file``: a description that leads to it, having no name."""

    path: str
    inode: int = 0
    device: int = 0
    handle_type: int = 0
    handle: bytes = b""
    file: FileId | None = None


def find(
    view: FdView, context: DumpContext, *, inode: int, device: int, kind: str | None,
    handle: str | None,
) -> Target:  # fmt: skip
    """What the words of a line of fdinfo mean. Raises Refused when nothing leads there."""
    handle_type, raw = int(kind or "0", 16), bytes.fromhex(handle or "")
    path, file = view.watch_path(device, inode, handle_type, raw), None
    if path is None:
        wanted = user_device(device), inode
        same = (i for i, v in context.views.items() if (v.st_dev, v.st_ino) == wanted)
        file = next(same, None)
        if file is None:
            raise refuse(NO_PATH, view.subject, f"inode {inode} of device {device:#x}")
        path = context.views[file].link.removesuffix(" (deleted)")
    return Target(path=path, inode=inode, device=device, handle_type=handle_type, handle=raw,
                  file=file)  # fmt: skip


def user_device(device: int) -> int:
    """The kernel's own dev_t as stat(2) has it."""
    major, minor = device >> MINOR_BITS, device & (1 << MINOR_BITS) - 1
    return (major & ~0xFFF) << 32 | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | minor & 0xFF


def encode(target: Target, message: Any) -> None:  # noqa: ANN401
    """CRIU's fh_entry."""
    message.bytes = len(target.handle)
    message.type = target.handle_type
    message.path = path_bytes(target.path)
    padded = target.handle.ljust(HANDLE_WORDS * 8, b"\0")
    message.handle.extend(
        int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)
    )


def decode(
    message: pb.fh_entry, inode: int, device: int, where: str, file: int | None = None
) -> Target:
    """Read it back. Raises Refused when CRIU has kept no path."""
    if not message.HasField("path"):
        raise refuse(NO_PATH, where, f"CRIU kept none of inode {inode} (--force-irmap does)")
    raw = b"".join(word.to_bytes(8, "little") for word in message.handle)
    return Target(
        path=path_from(message.path, where), inode=inode, device=device,
        handle_type=message.type, handle=raw[: message.bytes],
        file=None if file is None else FileId(file),
    )  # fmt: skip


def reached(target: Target, context: PlanContext) -> tuple[str, bool]:
    """The path to watch, and whether its last link is to be followed."""
    if target.file is not None and target.file in context.fds:
        return f"/proc/self/fd/{context.fd(target.file)}", True
    return mapped(target.path, context), False

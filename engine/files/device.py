# SPDX-License-Identifier: Apache-2.0
"""Character devices without a state of their own: null, zero, full, random, and a few more.

Facts:
- The kind of a device is st_rdev; the path may be any node. A container's stdin is often
  /dev/null of the host: the path then leads nowhere inside, the number still says all.
- A reader of /dev/kmsg has a place in the log that nothing tells: it goes on at the end of it.
- A descriptor of /dev/net/tun or /dev/fuse has no state before it is given an interface or a mount;
  poll(2) tells POLLERR until then (drivers/net/tun.c, fs/fuse/dev.c; probed on v6.18).
- Positions stay 0. All other devices have state in a driver: `unknown.py` names and refuses them.
- CRIU keeps them as REG entries with the mode of a character device.

Source: Documentation/admin-guide/devices.txt (v6.18).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.asking import Questions
from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    OWNER_OUTSIDE,
    Base,
    FileType,
    O,
    Owner,
    created,
    decode_owner,
    encode_owner,
    file_type,
    late_owners,
    path_bytes,
    path_from,
    read_owner,
    subject,
)
from torpor.engine.files.regular import QUESTIONS, ghosted, owner_kind
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    FileKind,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    PlanContext,
)
from torpor.engine.program.ops import Data, Op, Slot, place

NAMES = {
    (1, 3): "/dev/null", (1, 5): "/dev/zero", (1, 7): "/dev/full", (1, 8): "/dev/random",
    (1, 9): "/dev/urandom", (1, 11): "/dev/kmsg", (10, 183): "/dev/hwrng",
    (10, 200): "/dev/net/tun", (10, 229): "/dev/fuse", (10, 235): "/dev/autofs",
    (10, 237): "/dev/loop-control", (10, 257): "/dev/userfaultfd",
}  # fmt: skip
UNTIL_USED = ("/dev/net/tun", "/dev/fuse")
POLLERR = 8
KMSG = 1 << 8 | 11
SEEK_END = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device by a path that leads to it."""

    path: str
    flags: int
    mode: int
    owner: Owner = NOBODY


class DeviceKind(Base[Device]):
    """Stateless character devices."""

    name = "device"
    types: Sequence[str] = ("REG",)
    limits: Sequence[Limit] = (OWNER_OUTSIDE,)

    def matches(self, view: FdView) -> bool:
        """By the device number; O_PATH is a matter of paths, a deleted node one of ghosts."""
        is_device = file_type(view.st_mode) == FileType.CHARACTER and not view.flags & O.PATH
        return is_device and bool(view.st_nlink) and is_stateless(view)

    def questions(self, view: FdView) -> Questions:
        """Its owner, and what is at its path now."""
        del view
        return QUESTIONS

    def collect(self, view: FdView, context: DumpContext) -> Device:
        """The path, or the usual one when the path leads elsewhere."""
        usual = usual_name(view.st_rdev)
        assert usual is not None
        if view.st_rdev == KMSG and view.flags & O.ACCMODE != O.WRONLY:
            context.warn(f"{view.subject}: its reader goes on at the end of the kernel's log")
        is_here = view.path_stat(view.link) == (view.st_dev, view.st_ino)
        return Device(
            path=view.link if is_here else usual, flags=view.flags & ~int(O.CLOEXEC),
            mode=view.st_mode, owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Device], images: ImageSink) -> None:
        """reg_file_entry."""
        for file_id, state in states.items():
            entry = pb.reg_file_entry(
                id=file_id, flags=state.flags, pos=0, fown=encode_owner(state.owner),
                name=path_bytes(state.path), mode=state.mode,
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.REG, id=file_id, reg=entry))

    def decode(self, images: ImageSource) -> Mapping[FileId, Device]:
        """REG entries of devices; those that have another entry besides are of `tun.py`."""
        gone = ghosted(images) | {file_id for file_id, _ in images.files("TUNF")}
        return {
            file_id: Device(
                path=path_from(entry.name, f"files.img, file {file_id}"),
                flags=entry.flags & ~int(O.CLOEXEC), mode=entry.mode,
                owner=decode_owner(entry.fown),
            )
            for file_id, entry in images.files("REG")
            if owner_kind(entry) == "device" and file_id not in gone
        }  # fmt: skip

    def plan(self, states: Mapping[FileId, Device], context: PlanContext) -> Sequence[Op]:
        """Open by path. The caller's map of directories does not touch devices."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd = context.fd(file_id)
            opened = Op(
                call="openat",
                args=(AT_FDCWD, Data.path(state.path), state.flags | O.NOCTTY, 0),
                subject=subject(context, file_id, state.path), yields=Slot(f"open{fd}"),
                remedy=f"give the container {state.path}",
            )  # fmt: skip
            ops += place(opened, fd)
            if state.path.endswith("/kmsg") and state.flags & O.ACCMODE != O.WRONLY:
                ops.append(Op(call="lseek", args=(fd, 0, SEEK_END), subject=opened.subject))
        return ops

    def late(self, states: Mapping[FileId, Device], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def is_stateless(view: FdView) -> bool:
    """Whether nothing but its flags and its owner tells a descriptor of a device from a new one."""
    name = usual_name(view.st_rdev)
    return name is not None and (name not in UNTIL_USED or bool(view.poll_events() & POLLERR))


def usual_name(device: int) -> str | None:
    """Path that a device usually has which may be without a state; None for others."""
    major = (device >> 8) & 0xFFF | (device >> 32) & ~0xFFF
    minor = device & 0xFF | (device >> 12) & 0xFFFFFF00
    return NAMES.get((major, minor))


KIND: FileKind[Device] = DeviceKind()

# SPDX-License-Identifier: Apache-2.0
"""Descriptors of namespaces (/proc/PID/ns/NAME): of those that the tree itself is in.

Facts (probed on v6.18):
- The link is `net:[4026531833]`; the number is the inode of the namespace. A namespace of the tree
  is opened again by the link of the root task.
- CRIU knows them by the ids of ids-N.img; `ns_cflag` is the clone(2) flag of the sort.
- A namespace that no task of the tree is in cannot be made again.

Source: fs/nsfs.c, ns_get_name (v6.18); namespaces(7).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.files.common import (
    AT_FDCWD,
    Base,
    O,
    bad_image,
    created,
    subject,
)
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    FileKind,
    ImageSink,
    ImageSource,
    Limit,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Data, Op, Slot, place

NSFS_MAGIC = 0x6E736673
LINK = re.compile(r"(mnt|net|pid|ipc|uts|user|cgroup|time):\[\d+\]")
FLAGS = {
    "time": 0x80, "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
"""CLONE_NEW* by name."""
IDS = {"pid": 1, "net": 2, "ipc": 3, "uts": 4, "mnt": 5, "user": 6, "cgroup": 7, "time": 8}
"""As ids-N.img has them."""

FOREIGN = Limit(
    case="namespace",
    what="a descriptor of a namespace that the task itself is not in",
    remedy="close it before the checkpoint",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One of the tree's own, by the name of its sort."""

    name: str
    flags: int


class NamespaceKind(Base[Namespace]):
    """Descriptors of nsfs."""

    name = "namespace"
    types: Sequence[str] = ("NS",)
    limits: Sequence[Limit] = (FOREIGN,)

    def matches(self, view: FdView) -> bool:
        """By the file system; O_PATH ones as well."""
        return view.fs_magic == NSFS_MAGIC and LINK.fullmatch(view.link) is not None

    def collect(self, view: FdView, context: DumpContext) -> Namespace:
        """Which of the task's own it is."""
        del context
        name = view.link.partition(":")[0]
        if view.namespaces().get(name) != view.link:
            raise refuse(FOREIGN, view.subject)
        return Namespace(name=name, flags=view.flags & ~int(O.CLOEXEC))

    def encode(self, states: Mapping[FileId, Namespace], images: ImageSink) -> None:
        """ns_file_entry."""
        for file_id, state in states.items():
            entry = pb.ns_file_entry(
                id=file_id, ns_id=IDS[state.name], ns_cflag=FLAGS[state.name], flags=state.flags
            )
            images.add("files", pb.file_entry(type=pb.NS, id=file_id, nsf=entry))

    def decode(self, images: ImageSource) -> Mapping[FileId, Namespace]:
        """By the flag. Raises BadImage."""
        names = {flag: name for name, flag in FLAGS.items()}
        states = {}
        for file_id, entry in images.files("NS"):
            if entry.ns_cflag not in names:
                bad_image(f"no namespace has flag {entry.ns_cflag:#x}", f"files.img, {file_id}")
            states[file_id] = Namespace(
                name=names[entry.ns_cflag], flags=entry.flags & ~int(O.CLOEXEC)
            )
        return states

    def plan(self, states: Mapping[FileId, Namespace], context: PlanContext) -> Sequence[Op]:
        """Open the root's own."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, path = context.fd(file_id), f"/proc/self/ns/{state.name}"
            opened = Op(
                call="openat", args=(AT_FDCWD, Data.path(path), state.flags, 0),
                subject=subject(context, file_id, path), yields=Slot(f"open{fd}"),
                remedy="mount /proc where the tree is restored",
            )  # fmt: skip
            ops += place(opened, fd)
        return ops


KIND: FileKind[Namespace] = NamespaceKind()

# SPDX-License-Identifier: Apache-2.0
"""Descriptors of /dev/net/tun that have an interface: queues of tun and tap (`tunlink.py`).

Facts (probed on v6.18):
- fdinfo has `iff: NAME`. A descriptor without an interface is one of `device.py`.
- An interface that does not persist is gone with its last queue; so are its addresses and routes.
  They are taken with it, and made again. One that persists is found by its name, and brought back
  to what it was.
- TUNSETIFINDEX asks for a number; where another has it, TUNSETIFF fails. For a queue that has its
  interface TUNSETIFF fails with EEXIST, and changes nothing.
- CRIU has two entries for a descriptor: REG, which tells its flags, and TUNF.

Source: drivers/net/tun.c (v6.18); Documentation/networking/tuntap.rst.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.files import tunlink
from torpor.engine.files.common import (
    AT_FDCWD,
    NOBODY,
    OWNER_OUTSIDE,
    Base,
    FileType,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    file_type,
    info_value,
    late_owners,
    path_bytes,
    path_from,
    read_owner,
    subject,
)
from torpor.engine.files.tunlink import REQUEST, Network, Tun, call
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.abi import POLLIN
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
from torpor.engine.program.ops import Data, Expect, Op, Slot, place

DEVICE = 10 << 8 | 200
NODE = "/dev/net/tun"
ASKED_FOR = 0x3 | Tun.NAPI | Tun.NAPI_FRAGS | Tun.MULTI_QUEUE | Tun.NO_PI | Tun.VNET_HDR
"""Flags that TUNSETIFF takes."""
LIMITS = (tunlink.FILTER, tunlink.ELSEWHERE, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A descriptor. ``network`` is None for one without an interface (of CRIU's images)."""

    path: str
    flags: int
    mode: int
    is_detached: bool = False
    network: Network | None = None
    owner: Owner = NOBODY


class TunKind(Base[Queue]):
    """Descriptors of /dev/net/tun that have an interface."""

    name = "tun"
    types: Sequence[str] = ("TUNF",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the device number, and an interface's name in fdinfo."""
        is_device = file_type(view.st_mode) == FileType.CHARACTER and not view.flags & O.PATH
        return is_device and view.st_rdev == DEVICE and bool(info_value(view, "iff"))

    def collect(self, view: FdView, context: DumpContext) -> Queue:
        """The queue, and the interface; that once for all its queues."""
        raw = view.ioctl(Tun.GETIFF, bytes(REQUEST.size))
        name, flags = REQUEST.unpack(raw)
        text = name.rstrip(b"\0").decode("utf-8", "surrogateescape")
        known: dict[str, Network] = context.cache.setdefault("tun", {})
        if text not in known:
            known[text] = tunlink.read(view, text, flags, context)
        if view.poll_events() & POLLIN:
            context.warn(f"{view.subject}: packets that wait to be read from {text} are lost")
        is_here = view.path_stat(view.link) == (view.st_dev, view.st_ino)
        return Queue(
            path=view.link if is_here else NODE, flags=view.flags & ~int(O.CLOEXEC),
            mode=view.st_mode, is_detached=bool(flags & Tun.DETACH_QUEUE), network=known[text],
            owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Queue], images: ImageSink) -> None:
        """reg_file_entry and tunfile_entry; net_device_entry and torpor.json."""
        networks: dict[str, Network] = {}
        for file_id, state in states.items():
            opened = pb.reg_file_entry(
                id=file_id, flags=state.flags, pos=0, fown=encode_owner(state.owner),
                name=path_bytes(state.path), mode=state.mode,
            )  # fmt: skip
            queue = pb.tunfile_entry(id=file_id, ns_id=tunlink.NETWORK)
            if state.network is not None:
                networks[state.network.link.name] = state.network
                queue.netdev = path_bytes(state.network.link.name)
                queue.detached = state.is_detached
            images.add("files", pb.file_entry(type=pb.REG, id=file_id, reg=opened))
            images.add("files", pb.file_entry(type=pb.TUNF, id=file_id, tunf=queue))
        for network in networks.values():
            tunlink.encode(network, images)

    def decode(self, images: ImageSource) -> Mapping[FileId, Queue]:
        """TUNF entries, each with its REG entry. Raises BadImage."""
        queues = dict(images.files("TUNF"))
        opened = {i: entry for i, entry in images.files("REG") if i in queues} if queues else {}
        networks: dict[str, Network] = {}
        states = {}
        for file_id, queue in queues.items():
            where = f"files.img, file {file_id}"
            if file_id not in opened:
                bad_image("a tun device of which no entry REG tells the flags", where)
            name = queue.netdev.rstrip(b"\0").decode("utf-8", "surrogateescape")
            if name and name not in networks:
                networks[name] = tunlink.decode(name, images, queue.ns_id or tunlink.NETWORK, where)
            entry = opened[file_id]
            states[file_id] = Queue(
                path=path_from(entry.name, where), flags=entry.flags & ~int(O.CLOEXEC),
                mode=entry.mode, is_detached=queue.detached, network=networks.get(name),
                owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Queue], context: PlanContext) -> Sequence[Op]:
        """Every queue; with the first of an interface all that it was."""
        ops: list[Op] = []
        known: set[str] = set()
        for file_id, state in created(states, context).items():
            network = state.network
            what = subject(context, file_id, network.link.name if network else state.path)
            ops += _opened(state, context.fd(file_id), what)
            if network is not None:
                is_first = network.link.name not in known
                known.add(network.link.name)
                ops += _attached(state, network, context.fd(file_id), what)
                if is_first:
                    ops += tunlink.set_up(network, context.fd(file_id), what)
                    ops += tunlink.configure(network, context.spare_fd, what)
                if state.is_detached:
                    request = Data(REQUEST.pack(b"", Tun.DETACH_QUEUE), text="detach")
                    ops.append(call(context.fd(file_id), Tun.SETQUEUE, request, what))
        return ops

    def late(self, states: Mapping[FileId, Queue], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners; and that an interface stays: a restore that fails leaves none behind."""
        made = created(states, context)
        late = late_owners({i: s.owner for i, s in made.items()}, context)
        lasting: set[str] = set()
        for file_id, state in made.items():
            network, held = state.network, context.holders.get(file_id)
            if network is None or not held or not network.flags & Tun.PERSIST:
                continue
            if network.link.name not in lasting:
                lasting.add(network.link.name)
                what = subject(context, file_id, network.link.name)
                op = call(held[0].fd, Tun.SETPERSIST, 1, what)
                late.append(LateOp(task=held[0].task, op=op, last=True))
        return late


def _opened(state: Queue, fd: int, what: str) -> list[Op]:
    opened = Op(
        call="openat", args=(AT_FDCWD, Data.path(state.path), state.flags | O.NOCTTY, 0),
        subject=what, yields=Slot(f"open{fd}"), remedy=f"give the container {state.path}",
    )  # fmt: skip
    return place(opened, fd)


def _attached(state: Queue, network: Network, fd: int, what: str) -> list[Op]:
    """With its old number where that is free: the second try finds out that the first has done."""
    name = path_bytes(network.link.name)
    asked = network.flags & ASKED_FOR
    request = Data(REQUEST.pack(name, asked), text=f"{network.link.name}, {asked:#x}")
    told = Data(REQUEST.pack(b"", 0), text="name")
    ops = []
    for number in (network.link.index, 0):
        wanted = Data(struct.pack("<I", number), text=f"number {number}")
        ops.append(call(fd, Tun.SETIFINDEX, wanted, what, expect=Expect.ANY))
        ops.append(call(fd, Tun.SETIFF, request, what, expect=Expect.ANY))
    kind = "tap" if network.flags & Tun.TAP else "tun"
    ops.append(
        call(fd, Tun.GETIFF, told, what, note="has its interface",
              remedy=f"let no other interface have the name {network.link.name}, no other program "
              f"this {kind} interface; and restore with CAP_NET_ADMIN")
    )  # fmt: skip
    return ops


KIND: FileKind[Queue] = TunKind()

# SPDX-License-Identifier: Apache-2.0
"""BPF maps: hashes and arrays, with what they hold.

Facts (probed on v6.18):
- The link is `anon_inode:bpf-map`; fdinfo has type, sizes, flags, `map_id`, `frozen`; the name is
  told by BPF_OBJ_GET_INFO_BY_FD, all entries by one BPF_MAP_LOOKUP_BATCH.
- A map has descriptions of its own for each BPF_MAP_GET_FD_BY_ID, and with other access modes;
  they are made by the id that the new map gets.
- A frozen map takes no more entries from programs of user space: it is frozen last.
- What cannot be set back: the id, and the types of keys and values for debuggers (BTF).

Source: kernel/bpf/syscall.c (v6.18); bpf(2).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.files.common import (
    NOBODY,
    OWNER_OUTSIDE,
    Base,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    info_number,
    late_owners,
    read_owner,
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
    LateOp,
    Limit,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Data, Op, Slot, place

LINK = "anon_inode:bpf-map"
HASH, ARRAY = 1, 2
CREATE, FREEZE, GET_FD_BY_ID, GET_INFO_BY_FD, UPDATE_BATCH = 0, 22, 14, 15, 26
RDONLY, WRONLY = 1 << 3, 1 << 4
CREATED = struct.Struct("<7I16s5IQ")
MAX_BYTES = 1 << 30

OTHER_TYPE = Limit(
    case="bpf-map-type",
    what="a BPF map that is neither a hash nor an array",
    remedy="close it before the checkpoint",
)
OF_DEVICE = Limit(
    case="bpf-map-device",
    what="a BPF map that a network device holds",
    remedy="close it before the checkpoint",
)
LIMITS = (OTHER_TYPE, OF_DEVICE, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfMap:
    """A description of a map; ``map_id`` is the same for all of one map."""

    map_id: int
    map_type: int
    key_bytes: int
    value_bytes: int
    entries: int
    map_flags: int
    extra: int
    memlock: int
    frozen: bool
    name: bytes
    flags: int
    count: int
    keys: bytes
    values: bytes
    owner: Owner = NOBODY


class BpfMapKind(Base[BpfMap]):
    """Hashes and arrays."""

    name = "BPF map"
    types: Sequence[str] = ("BPFMAP",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK

    def collect(self, view: FdView, context: DumpContext) -> BpfMap:
        """fdinfo, name and content."""
        map_type = info_number(view, "map_type")
        if map_type not in (HASH, ARRAY):
            raise refuse(OTHER_TYPE, view.subject, f"type {map_type}")
        content = view.bpf_content()
        if content.ifindex:
            raise refuse(OF_DEVICE, view.subject, f"device {content.ifindex}")
        return BpfMap(
            map_id=info_number(view, "map_id"), map_type=map_type,
            key_bytes=info_number(view, "key_size"), value_bytes=info_number(view, "value_size"),
            entries=info_number(view, "max_entries"), map_flags=info_number(view, "map_flags", 0),
            extra=info_number(view, "map_extra", 0), memlock=info_number(view, "memlock"),
            frozen=bool(info_number(view, "frozen")), name=content.name,
            flags=view.flags & ~int(O.CLOEXEC), count=content.count, keys=content.keys,
            values=content.values, owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, BpfMap], images: ImageSink) -> None:
        """bpfmap_file_entry, and a bpfmap_data_entry for each map."""
        for file_id, state in states.items():
            entry = pb.bpfmap_file_entry(
                id=file_id, flags=state.flags, pos=0, fown=encode_owner(state.owner),
                map_type=state.map_type, key_size=state.key_bytes, value_size=state.value_bytes,
                map_id=state.map_id, max_entries=state.entries, map_flags=state.map_flags,
                memlock=state.memlock, frozen=state.frozen, map_name=state.name, ifindex=0,
                map_extra=state.extra,
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.BPFMAP, id=file_id, bpf=entry))
        for state in {state.map_id: state for state in states.values()}.values():
            data = pb.bpfmap_data_entry(
                map_id=state.map_id, keys_bytes=len(state.keys), values_bytes=len(state.values),
                count=state.count,
            )  # fmt: skip
            images.add("bpfmap-data", data, state.keys + state.values)

    def decode(self, images: ImageSource) -> Mapping[FileId, BpfMap]:
        """Read them back. Raises BadImage."""
        held = {e.map_id: (e, payload) for e, payload in images.entries("bpfmap-data")}
        states = {}
        for file_id, entry in images.files("BPFMAP"):
            where = f"files.img, file {file_id}"
            data, payload = held.get(entry.map_id, (pb.bpfmap_data_entry(), b""))
            count, split = data.count, data.keys_bytes
            sizes = (count * entry.key_size, count * entry.value_size)
            if entry.map_type not in (HASH, ARRAY) or sum(sizes) > MAX_BYTES:
                bad_image(f"a BPF map of type {entry.map_type} with {count} entries", where)
            if (split, len(payload) - split) != sizes:
                bad_image("a BPF map whose content is of a wrong size", where)
            states[file_id] = BpfMap(
                map_id=entry.map_id, map_type=entry.map_type, key_bytes=entry.key_size,
                value_bytes=entry.value_size, entries=entry.max_entries,
                map_flags=entry.map_flags, extra=entry.map_extra, memlock=entry.memlock,
                frozen=entry.frozen, name=entry.map_name.rstrip(b"\0")[:15],
                flags=entry.flags & ~int(O.CLOEXEC), count=count, keys=payload[:split],
                values=payload[split:], owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, BpfMap], context: PlanContext) -> Sequence[Op]:
        """Make and fill every map once; more descriptions by its new id."""
        maps: dict[int, dict[FileId, BpfMap]] = {}
        for file_id, state in created(states, context).items():
            maps.setdefault(state.map_id, {})[file_id] = state
        ops: list[Op] = []
        for alike in maps.values():
            ops += _made(alike, context)
        return ops

    def late(self, states: Mapping[FileId, BpfMap], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def _made(alike: Mapping[FileId, BpfMap], context: PlanContext) -> list[Op]:
    (first, state), *_ = alike.items()
    what = subject(context, first, LINK)
    open_flags = {i: _access(s.flags) for i, s in alike.items()}
    direct = next((i for i, flags in open_flags.items() if not flags), None)
    fd = context.spare_fd if direct is None else context.fd(direct)
    create = Data(
        CREATED.pack(state.map_type, state.key_bytes, state.value_bytes, state.entries,
                     state.map_flags, 0, 0, state.name, 0, 0, 0, 0, 0, state.extra),
        text=state.name.decode("ascii", "replace") or "map",
    )  # fmt: skip
    made = Op(call="bpf", args=(CREATE, create, CREATED.size), subject=what,
              remedy="run with CAP_BPF", yields=Slot(f"map{fd}"))  # fmt: skip
    ops = place(made, fd)
    if state.count:
        ops.append(_fill(state, fd, what))
    if state.frozen:
        ops.append(Op(call="bpf", args=(FREEZE, Data(struct.pack("<I", fd)), 4), subject=what))
    others = {i: flags for i, flags in open_flags.items() if i != direct}
    if others:
        ops += _by_id(fd, others, what, context)
    if direct is None:
        ops.append(Op(call="close", args=(fd,), subject=what))
    return ops


def _fill(state: BpfMap, fd: int, what: str) -> Op:
    keys, values = Data(state.keys, text="keys"), Data(state.values, text="values")
    batch = Data(
        struct.pack("<4Q2I2Q", 0, 0, 0, 0, state.count, fd, 0, 0),
        pointers=((16, keys), (24, values)), text=f"{state.count} entries",
    )  # fmt: skip
    return Op(call="bpf", args=(UPDATE_BATCH, batch, 56), subject=what, note="content")


def _by_id(fd: int, wanted: Mapping[FileId, int], what: str, context: PlanContext) -> list[Op]:
    info = Data.room(88)
    asked = Data(struct.pack("<IIQ", fd, 88, 0), pointers=((8, info),), text="info")
    number = Slot(f"map_id{fd}")
    ops = [
        Op(call="bpf", args=(GET_INFO_BY_FD, asked, 16), subject=what),
        Op(call="@load32", args=(info, 4), yields=number, subject=what, note="its new id"),
    ]
    for file_id, flags in wanted.items():
        named = Data(struct.pack("<III", 0, 0, flags) + bytes(4), text="by id")
        ops.append(Op(call="@store64", args=(named, number), subject=what))
        opened = Op(call="bpf", args=(GET_FD_BY_ID, named, 12), subject=what,
                    yields=Slot(f"map{context.fd(file_id)}"))  # fmt: skip
        ops += place(opened, context.fd(file_id))
    return ops


def _access(flags: int) -> int:
    """Flags of a bpf(2) that opens a map for reading or writing only."""
    return {int(O.RDWR): 0, int(O.WRONLY): WRONLY}.get(flags & O.ACCMODE, RDONLY)


KIND: FileKind[BpfMap] = BpfMapKind()

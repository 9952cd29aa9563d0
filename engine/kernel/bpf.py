# SPDX-License-Identifier: Apache-2.0
"""What bpf(2) tells of a map by a descriptor of ours."""

import ctypes
import errno
import struct

from torpor.engine.kernel.fdcalls import kernel_error
from torpor.engine.kind import BpfContent

NR_BPF = 321
GET_INFO_BY_FD, LOOKUP_BATCH = 15, 24
INFO = struct.Struct("<6I16sI")
INFO_ROOM = 256

_libc = ctypes.CDLL(None, use_errno=True)


def content(fd: int, subject: str) -> BpfContent:
    """Name, index of a network device, and all that a hash or an array holds."""
    room = ctypes.create_string_buffer(INFO_ROOM)
    attributes = struct.pack("<IIQ", fd, INFO_ROOM, ctypes.addressof(room))
    if _bpf(GET_INFO_BY_FD, attributes) < 0:
        raise kernel_error("bpf(BPF_OBJ_GET_INFO_BY_FD)", subject)
    _, _, key_bytes, value_bytes, entries, _, name, ifindex = INFO.unpack_from(room.raw)
    keys = ctypes.create_string_buffer(key_bytes * entries)
    values = ctypes.create_string_buffer(value_bytes * entries)
    token = ctypes.create_string_buffer(max(key_bytes, 8))
    batch = ctypes.create_string_buffer(
        struct.pack("<4Q2I2Q", 0, ctypes.addressof(token), ctypes.addressof(keys),
                    ctypes.addressof(values), entries, fd, 0, 0)
    )  # fmt: skip
    failed = _libc.syscall(NR_BPF, LOOKUP_BATCH, batch, ctypes.c_size_t(56)) < 0
    if failed and ctypes.get_errno() != errno.ENOENT:  # which says that this is all
        raise kernel_error("bpf(BPF_MAP_LOOKUP_BATCH)", subject)
    (count,) = struct.unpack_from("<I", batch.raw, 32)
    return BpfContent(
        name=name.rstrip(b"\0"), ifindex=ifindex, count=count,
        keys=keys.raw[: key_bytes * count], values=values.raw[: value_bytes * count],
    )  # fmt: skip


def _bpf(command: int, attributes: bytes) -> int:
    return int(_libc.syscall(NR_BPF, command, attributes, ctypes.c_size_t(len(attributes))))

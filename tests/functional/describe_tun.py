# SPDX-License-Identifier: Apache-2.0
"""What can be read of the interface of a tun or tap descriptor: sysfs, settings, routes, features.

The descriptor is asked by a copy (pidfd_getfd).
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.functional.describe_sockets import copy_of

READABLE = {
    "interface": (0x800454D2, 40), "send buffer": (0x800454D3, 4), "header": (0x800454D7, 4),
    "little endian": (0x800454DD, 4),
}  # fmt: skip
SIOCETHTOOL, GFEATURES = 0x8946, 0x3A
OF_SYSFS = (
    "address", "broadcast", "carrier", "flags", "group", "ifalias", "ifindex", "mtu",
    "netdev_group", "operstate", "owner", "tun_flags", "tx_queue_len", "type",
)  # fmt: skip
NOT_COMPARED = {
    "stable_secret": "random, of link-local addresses that are to come",
}
CHOSEN_BY_KERNEL = " stable-privacy"
"""What the kernel says of an address that it has chosen, and takes from nobody."""


def describe(pid: int, fd: int, name: str) -> dict[str, str]:
    """Named answers."""
    said = {}
    device = copy_of(pid, fd)
    try:
        for what, (request, room) in READABLE.items():
            said[what] = fcntl.ioctl(device, request, bytes(room)).hex()
    finally:
        os.close(device)
    place = Path("/sys/class/net") / name
    for one in OF_SYSFS:
        with suppress(OSError):
            said[one] = (place / one).read_text().strip()
    for family in ("ipv4", "ipv6"):
        folder = Path(f"/proc/sys/net/{family}/conf/{name}")
        for one in sorted(folder.iterdir()) if folder.exists() else ():
            if one.name in NOT_COMPARED:
                continue
            with suppress(OSError):
                said[f"{family} {one.name}"] = one.read_text().strip()
    for words in (("addr", "show"), ("-4", "route", "show", "table", "all"),
                  ("-6", "route", "show", "table", "all")):  # fmt: skip
        found = subprocess.run(
            ["ip", *words, "dev", name], capture_output=True, check=False, text=True
        )
        said[" ".join(words)] = "\n".join(
            sorted(found.stdout.replace(CHOSEN_BY_KERNEL, "").splitlines())
        )
    said["features"] = _features(name)
    return said


def _features(name: str) -> str:
    """struct ethtool_gfeatures: available, requested, active, never changed; 32 to a block."""
    blocks = 3
    room = ctypes.create_string_buffer(struct.pack("II", GFEATURES, blocks) + bytes(16 * blocks))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, SIOCETHTOOL, struct.pack("16sQ16x", name.encode(), ctypes.addressof(room)))
    return room.raw[8 : 8 + 16 * blocks].hex()

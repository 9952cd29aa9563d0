# SPDX-License-Identifier: Apache-2.0
"""inventory.img: what holds for the whole dump.

Facts: CRIU 4.2 writes version 2, keeps descriptors by table (`fdinfo_per_id`) and namespaces by
id (`ns_per_id`). Images of another layout are old, and not read here.
"""

import os

from torpor.engine.errors import BadImage
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.writing import NewImageDirectory

NAME = "inventory"
VERSION = 2
LOCK_IPTABLES, LOCK_NFTABLES, LOCK_SKIP = 0, 1, 2


def write_inventory(
    images: NewImageDirectory,
    *,
    root_ids: pb.task_kobj_ids_entry,
    root_cgroup_set: int | None = None,
    tcp_close: bool = False,
    locked: bool = False,
    run_id: str = "",
    uptime_us: int | None = None,
) -> None:
    """Write the inventory; `root_ids` are the ids of the dumping process.

    ``locked``: a table of nftables that is named after ``run_id`` holds packets back.
    """
    inventory = pb.inventory_entry(
        img_version=VERSION,
        fdinfo_per_id=True,
        root_ids=root_ids,
        ns_per_id=True,
        root_cg_set=root_cgroup_set,
        lsmtype=pb.NO_LSM,
        dump_uptime=uptime_us,
        network_lock_method=LOCK_NFTABLES if locked else LOCK_SKIP,
        plugins_entry=pb.plugins_entry(),
        dump_criu_run_id=run_id or new_run_id(),
    )
    if tcp_close:
        inventory.tcp_close = True
    images.add(NAME, inventory)


def new_run_id() -> str:
    """A random UUID; the module of that name loads half of the standard library."""
    raw = bytearray(os.urandom(16))
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def read_inventory(images: ImageDirectory) -> pb.inventory_entry:
    """Read the inventory and check that this torpor understands the images.

    Raises: BadImage.
    """
    inventory = images.message(NAME, pb.inventory_entry)
    if inventory.img_version != VERSION:
        newer = inventory.img_version > VERSION
        raise BadImage(
            f"images are of version {inventory.img_version}",
            subject="inventory.img",
            cause=f"this torpor knows version {VERSION}",
            remedy="use a newer torpor" if newer else "dump again with a newer CRIU",
        )
    if not (inventory.fdinfo_per_id and inventory.ns_per_id):
        raise BadImage(
            "images are of a layout that is no longer written",
            subject="inventory.img",
            cause="fdinfo_per_id or ns_per_id is not set",
            remedy="dump again with a newer CRIU",
        )
    return inventory

# SPDX-License-Identifier: Apache-2.0
import struct
from dataclasses import replace

import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files import device, tunlink
from torpor.engine.files.common import O
from torpor.engine.files.tun import KIND, Queue
from torpor.engine.files.tunlink import NOT_SET, Network, Tun
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import rtnetlink
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kernel.rtnetlink import Interface, attribute
from torpor.engine.kernel.test_rtnetlink import answer
from torpor.engine.kind import FileId

FEATURES = 21
LINK = Interface(
    name="tun0", index=7, flags=0x1091, mtu=1400, hardware=65534, queue_length=500, gen_mode=3,
    conf=(0, 1), info={},
)  # fmt: skip
NETWORK = Network(
    link=LINK, flags=1 | Tun.NO_PI, header_bytes=10,
    addresses=((b"\2\x18\x80\0", attribute(1, b"addr")),),
    routes=((bytes(12), attribute(1, b"to..")),),
)  # fmt: skip
QUEUE = Queue(path="/dev/net/tun", flags=O.RDWR, mode=0o20600, network=NETWORK)


def link(*, pi=0, master=0, index=7, name=b"tun0"):
    info = attribute(1, b"tun\0") + attribute(2, attribute(4, bytes([pi])))
    families = attribute(2, attribute(1, struct.pack("=2I", 0, 1))) + attribute(
        10, attribute(8, b"\3")
    )
    parts = (
        attribute(3, name + b"\0"), attribute(4, struct.pack("=I", 1400)),
        attribute(13, struct.pack("=I", 500)), attribute(18, info), attribute(26, families),
    )  # fmt: skip
    more = attribute(10, struct.pack("=I", master)) if master else b""
    return answer(struct.pack("=BxHiII", 0, 65534, index, 0x1091, 0) + b"".join(parts) + more)


def view(*, flags=1 | Tun.NO_PI, poll=0, filtered=0, links=None, **more):
    asked = {
        rtnetlink.link_request("tun0"): link() if links is None else links,
        rtnetlink.addresses_request(): answer(
            struct.pack("=BBBBI", 2, 24, 0x80, 0, 7) + attribute(1, b"addr")
        ),
        rtnetlink.routes_request(): answer(),
    }
    generic = {
        rtnetlink.family_request("ethtool"): answer(bytes(4) + attribute(1, b"\x15\0")),
        rtnetlink.features_request(FEATURES, "tun0"): answer(bytes(4)),
    }
    return RecordedFd(
        link="/dev/net/tun", st_mode=0o20600, st_rdev=10 << 8 | 200, flags=O.RDWR,
        info=("iff:\ttun0",), poll=poll,
        ioctls={
            Tun.GETIFF: tunlink.REQUEST.pack(b"tun0", flags), Tun.GETVNETHDRSZ: b"\x0a\0\0\0",
            Tun.GETSNDBUF: b"\xff\xff\xff\x7f", Tun.GETVNETLE: bytes(4),
            Tun.GETFILTER: struct.pack("H14x", filtered),
        },
        netlinks={
            **{(16, 0, request): reply for request, reply in asked.items()},
            **{(16, 16, request): reply for request, reply in generic.items()},
            **more.pop("netlinks", {}),
        },
        **more,
    )  # fmt: skip


def test_only_one_with_an_interface():
    assert KIND.matches(view())
    fresh = RecordedFd(link="/dev/net/tun", st_mode=0o20600, st_rdev=10 << 8 | 200, flags=O.RDWR,
                       info=("iff:\t",), poll=8)  # fmt: skip
    assert not KIND.matches(fresh)
    assert device.KIND.matches(fresh)
    assert not KIND.matches(replace(view(), flags=O.PATH))


def test_collect():
    warnings = []
    state = KIND.collect(view(), dump_context(warn=warnings.append))
    assert state.network is not None
    assert state.network.link.conf == (0, 1)
    assert state.network.owner == NOT_SET
    assert len(state.network.addresses) == 1
    assert warnings == []
    KIND.collect(view(poll=1), dump_context(warn=warnings.append))
    assert "are lost" in warnings[0]


@pytest.mark.parametrize(("pi", "wanted"), [(1, 0), (0, Tun.NO_PI)])
def test_heads_of_packets_are_told_by_rtnetlink_only(pi, wanted):
    state = KIND.collect(view(links=link(pi=pi)), dump_context())
    assert state.network.flags & Tun.NO_PI == wanted


def test_the_bridge_by_name():
    by_number = (16, 0, rtnetlink.link_by_number_request(3))
    there = {by_number: link(index=3, name=b"br0")}
    state = KIND.collect(view(links=link(master=3), netlinks=there), dump_context())
    assert state.network.master == "br0"
    told = described(KIND, {FileId(1): state}, plan_context(1))
    assert "belongs to br0" in told


def test_refused():
    with pytest.raises(Refused, match="filter"):
        KIND.collect(view(flags=2, filtered=1), dump_context())
    gone = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -19) + bytes(16)
    with pytest.raises(Refused, match="another network namespace"):
        KIND.collect(view(links=gone), dump_context())
    bridge = answer(struct.pack("=BxHiII", 0, 1, 7, 1, 0) + attribute(3, b"tun0\0"))
    with pytest.raises(Refused, match="another kind"):
        KIND.collect(view(links=bridge), dump_context())


def test_images():
    states = {FileId(1): QUEUE, FileId(2): replace(QUEUE, is_detached=True)}
    back, images = through_images(KIND, states)
    assert back == states
    assert device.KIND.decode(images) == {}
    (entry,) = [entry for entry, _ in images.entries("netdev-2")]
    assert (entry.name, entry.tun.flags, entry.tun.owner) == (b"tun0", 0x1001, -1)


def test_plan():
    told = described(KIND, {FileId(1): QUEUE}, plan_context(1)).splitlines()
    assert told[0].startswith("openat(-100, '/dev/net/tun', 258, 0)")
    notes = ["its settings", "no addresses of its own", "up", "an address", "a route",
             "addresses of its own"]  # fmt: skip
    sent = [line.rpartition(": ")[2] for line in told if line.startswith("sendmsg")]
    assert sent == notes
    assert not KIND.late({FileId(1): QUEUE}, plan_context(1))


def test_one_that_persists_is_made_so_at_the_end():
    lasting = replace(QUEUE, network=replace(NETWORK, flags=1 | Tun.NO_PI | Tun.PERSIST))
    states = {FileId(1): lasting, FileId(2): lasting}
    (late,) = KIND.late(states, plan_context(2))
    assert late.last
    assert late.op.args[1:] == (Tun.SETPERSIST, 1)


def test_settings_once_for_all_queues():
    states = {FileId(1): QUEUE, FileId(2): replace(QUEUE, is_detached=True)}
    told = described(KIND, states, plan_context(2))
    assert told.count(": its settings\n") == 2, "sent, and its answer read"
    assert told.count("detach") == 1


def entries(**kept):
    images = RecordedImages()
    KIND.encode({FileId(1): QUEUE}, images)
    images.extra("tun", "tun0", {**images.extra("tun", "tun0"), **kept})
    return images


@pytest.mark.parametrize(
    "kept",
    [
        {"addresses": [["02", ""]]}, {"routes": [["00" * 12, "00" * 5]]}, {"conf": ["x"]},
        {"master": "a/b"}, {"queue_length": -1}, {"gen_mode": 300}, {"addresses": 5},
        {"offloads": 1 << 40}, {"routes": [["zz", ""]]}, {"alias": 7},
    ],
)  # fmt: skip
def test_hostile_images(kept):
    with pytest.raises(BadImage, match="is no tun interface"):
        KIND.decode(entries(**kept))


def test_parts_that_are_missing():
    images = RecordedImages()
    queue = pb.tunfile_entry(id=1, netdev=b"tun0")
    images.add("files", pb.file_entry(type=pb.TUNF, id=1, tunf=queue))
    with pytest.raises(BadImage, match="no entry REG"):
        KIND.decode(images)
    opened = pb.reg_file_entry(id=1, flags=2, pos=0, fown=pb.fown_entry(uid=0, euid=0, signum=0,
                               pid_type=0, pid=0), name=b"/dev/net/tun")  # fmt: skip
    images.add("files", pb.file_entry(type=pb.REG, id=1, reg=opened))
    with pytest.raises(BadImage, match="not there as a tun"):
        KIND.decode(images)
    queue.netdev = b"../%d"
    images = RecordedImages()
    images.add("files", pb.file_entry(type=pb.REG, id=1, reg=opened))
    images.add("files", pb.file_entry(type=pb.TUNF, id=1, tunf=queue))
    with pytest.raises(BadImage, match="no name"):
        KIND.decode(images)

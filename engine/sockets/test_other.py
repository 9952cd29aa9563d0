# SPDX-License-Identifier: Apache-2.0
import struct

import pytest

from torpor.engine.errors import Refused
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId
from torpor.engine.sockets import netlink, other

SOL, NETLINK = 1, 270


def word(value):
    return struct.pack("<i", value)


def view(family, kind, protocol, **more):
    options = {(SOL, 39): word(family), (SOL, 3): word(kind), (SOL, 38): word(protocol)}
    return RecordedFd(link="socket:[7]", st_mode=0o140777, st_ino=7, flags=0o2,
                      sockopts=options | more.pop("options", {}), **more)  # fmt: skip


def address(port, groups):
    return struct.pack("<HHII", 16, 0, port, groups)


def netlink_view(memory=0, words=(0x11, 2), port=4711, **more):
    options = {
        (SOL, 55): word(memory),
        (NETLINK, 9): struct.pack(f"<{len(words)}I", *words),
        (NETLINK, 11): word(1),
        (SOL, 72): word(0),
    }
    return view(16, 3, 0, socket_name=address(port, words[0]), socket_peer=address(0, 0),
                options=options, **more)  # fmt: skip


@pytest.mark.parametrize(("family", "kind", "protocol", "case"), [
    (2, 5, 132, "sctp-socket"), (40, 1, 0, "vsock"), (44, 3, 0, "xdp-socket"),
    (38, 5, 0, "alg-socket"), (31, 1, 3, "bluetooth-socket"), (29, 3, 1, "can-socket"),
    (30, 1, 0, "tipc-socket"), (41, 2, 0, "kcm-socket"), (99, 1, 0, "unknown-socket"),
])  # fmt: skip
def test_refused_by_name(family, kind, protocol, case):
    found = view(family, kind, protocol)
    assert other.KIND.matches(found)
    with pytest.raises(Refused) as caught:
        other.KIND.collect(found, dump_context())
    (limit,) = [each for each in other.LIMITS if each.case == case]
    assert (caught.value.what, caught.value.remedy) == (limit.what, limit.remedy)
    assert caught.value.subject == "task 41, fd 3 -> socket:[7]"


@pytest.mark.parametrize(("family", "kind", "protocol"), [
    (1, 1, 0), (2, 1, 6), (10, 2, 17), (16, 3, 15), (2, 1, 262),
])  # fmt: skip
def test_what_other_modules_take(family, kind, protocol):
    assert not other.KIND.matches(view(family, kind, protocol))


def test_netlink_monitor():
    state = netlink.KIND.collect(netlink_view(), dump_context())
    assert (state.port, state.groups) == (4711, (0x11, 2))
    back, _ = through_images(netlink.KIND, {FileId(1): state})
    assert back == {1: state}
    what = "  # fd 3 -> netlink NETLINK_ROUTE, port 4711"
    assert described(netlink.KIND, back, plan_context(1)).splitlines() == [
        f"socket(16, 3, 0) → new513{what}",
        f"dup3($new513, 513, 0){what}",
        f"close($new513){what}",
        f"setsockopt(513, 270, 11, 1, 4){what}: NETLINK_EXT_ACK = 1",
        f"bind(513, netlink port 4711, 12){what}: groups 0x11",
        f"setsockopt(513, 270, 1, 34, 4){what}: NETLINK_ADD_MEMBERSHIP",
    ]


def test_netlink_notices_are_dropped_and_answers_refused():
    warnings = []
    netlink.KIND.collect(netlink_view(memory=768), dump_context(warn=warnings.append))
    assert "dropped" in warnings[0]
    with pytest.raises(Refused, match="answer of the kernel"):
        netlink.KIND.collect(netlink_view(memory=768, words=(0, 0)), dump_context())

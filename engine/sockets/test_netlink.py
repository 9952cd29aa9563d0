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
from torpor.engine.sockets import netlink
from torpor.engine.sockets.netlink import KIND

SOL, NETLINK_LEVEL = 1, 270
RAW, DGRAM = 3, 2
ROUTE, AUDIT = 0, 9


def word(value):
    return struct.pack("<i", value)


def at(port, groups=0):
    return struct.pack("<HHII", 16, 0, port, groups)


def view(port=0, groups=(), kind=RAW, protocol=ROUTE, queued=0, peer=None, **options):
    members = struct.pack(f"<{len(groups)}I", *groups)
    return RecordedFd(
        link="socket:[7]", st_mode=0o140777, st_ino=7, flags=0o2, socket_peer=peer,
        socket_name=at(port, groups[0] if groups else 0),
        sockopts={
            (SOL, 39): word(16), (SOL, 3): word(kind), (SOL, 38): word(protocol),
            (SOL, 55): struct.pack("<9I", queued, *[0] * 8), (NETLINK_LEVEL, 9): members,
        } | options.pop("sockopts", {}),
        **options,
    )  # fmt: skip


def collect(recorded, warnings=None):
    context = dump_context(
        views={FileId(1): recorded}, warn=(warnings if warnings is not None else []).append
    )
    states = {FileId(1): KIND.collect(recorded, context)}
    assert not list(KIND.check(states, context))
    return states


def test_only_netlink_sockets_are_its():
    assert KIND.matches(view())
    assert not KIND.matches(view(sockopts={(SOL, 39): word(2)}))
    assert not KIND.matches(RecordedFd(link="/socket:[7]", st_mode=0o100644))


def test_port_and_groups_beyond_the_first_word():
    states = collect(view(port=4711, groups=(0x11, 0b10, 0), kind=DGRAM))
    assert states[1].groups == (0x11, 0b10)
    back, images = through_images(KIND, states)
    assert back == states
    assert images.extra("netlink", "1") == {"type": DGRAM}
    what = "  # fd 3 -> netlink NETLINK_ROUTE, port 4711"
    assert described(KIND, back, plan_context(1)).splitlines() == [
        f"socket(16, 2, 0) → new513{what}",
        f"dup3($new513, 513, 0){what}",
        f"close($new513){what}",
        f"bind(513, netlink port 4711, 12){what}: groups 0x11",
        f"setsockopt(513, 270, 1, 34, 4){what}: NETLINK_ADD_MEMBERSHIP",
    ]


def test_a_fresh_one_is_bound_to_nothing():
    back, images = through_images(KIND, collect(view()))
    assert images.extra("netlink", "1") is None
    text = described(KIND, back, plan_context(1))
    assert "bind" not in text
    assert "connect" not in text


def test_a_peer_is_connected_again():
    back, images = through_images(KIND, collect(view(port=5, peer=at(99, 4))))
    ((entry, _),) = images.entries("files")
    assert (entry.nlsk.state, entry.nlsk.dst_portid, entry.nlsk.dst_group) == (1, 99, 4)
    assert "connect(513, netlink port 99, 12)" in described(KIND, back, plan_context(1))


def test_an_answer_that_waits_is_refused():
    with pytest.raises(Refused) as caught:
        collect(view(port=5, queued=128))
    assert caught.value.what == netlink.ANSWER_WAITS.what
    assert caught.value.subject == "task 41, fd 3 -> socket:[7]"


def test_notices_that_wait_are_dropped_with_a_warning():
    warnings = []
    collect(view(port=5, groups=(1,), queued=128), warnings)
    assert warnings == ["task 41, fd 3 -> socket:[7]: queued netlink notices are dropped"]


def audit_view(answer, pid=41):
    asked = struct.pack("=IHHII", 16, netlink.AUDIT_GET, 1, 1, 0)
    return view(protocol=AUDIT, port=99, pid=pid, netlinks={(16, AUDIT, asked): answer})


def audit_status(pid):
    return struct.pack("=IHHII10I", 56, netlink.AUDIT_GET, 0, 1, 0, 0, 1, 0, pid, *[0] * 6)


def test_the_audit_daemon_is_refused():
    with pytest.raises(Refused) as caught:
        KIND.collect(audit_view(audit_status(pid=41)), dump_context(tasks={41: 41}))
    assert caught.value.remedy == netlink.AUDIT.remedy


def test_who_only_writes_audit_records_is_taken():
    states = {
        FileId(1): KIND.collect(audit_view(audit_status(pid=7)), dump_context(tasks={41: 41}))
    }
    back, _ = through_images(KIND, states)
    assert back == states
    assert back[FileId(1)].protocol == AUDIT


def test_nobody_in_a_pid_namespace_of_its_own_is_the_audit_daemon():
    assert collect(view(protocol=AUDIT, pid=4000))


def test_without_an_answer_an_audit_socket_is_refused():
    denied = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -1)
    with pytest.raises(Refused):
        collect(audit_view(denied))

# SPDX-License-Identifier: Apache-2.0
import struct
from dataclasses import replace

import pytest

from torpor.engine.errors import Refused
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel import netlink
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import BoundFile, FileId, Holder, Message
from torpor.engine.sockets import unix
from torpor.engine.sockets.options import SocketOptions
from torpor.engine.sockets.unix import KIND
from torpor.engine.sockets.unix_state import Creator, UnixState

SOL, TYPE, ACCEPTCONN, DOMAIN = 1, 3, 30, 39
STREAM, DGRAM = 1, 2
ASK = (16, netlink.NETLINK_SOCK_DIAG, netlink.unix_diag_request())
DONE = struct.pack("=IHHIIi", 20, netlink.NLMSG_DONE, 2, 1, 0, 0)
PLAIN = SocketOptions(sndbuf_bytes=212992, rcvbuf_bytes=212992, buf_lock=0)


def word(value):
    return struct.pack("<i", value)


def entry(inode, kind=STREAM, state=1, peer=None, **more):
    parts = b""
    attributes = {0: more.get("name"), 6: more.get("shutdown")}
    if peer is not None:
        attributes[2] = struct.pack("=I", peer)
    if "queues" in more:
        attributes[4] = struct.pack("=II", *more["queues"])
    if "pending" in more:
        attributes[3] = struct.pack(f"={len(more['pending'])}I", *more["pending"])
    if "vfs" in more:
        attributes[1] = struct.pack("=II", *more["vfs"])
    for number, data in attributes.items():
        if data is not None:
            parts += struct.pack("=HH", 4 + len(data), number) + data + bytes(-len(data) % 4)
    payload = struct.pack("=BBBBIII", 1, kind, state, 0, inode, 0, 0) + parts
    return struct.pack("=IHHII", 16 + len(payload), 20, 2, 1, 0) + payload


def view(inode, diag, fd=3, kind=STREAM, name=b"", peer=None, **more):
    options = {
        (SOL, DOMAIN): word(1),
        (SOL, TYPE): word(kind),
        (SOL, ACCEPTCONN): word(more.pop("listening", 0)),
        (SOL, 7): word(212992),
        (SOL, 8): word(212992),
        (SOL, 72): word(0),
    }
    return RecordedFd(
        fd=fd, link=f"socket:[{inode}]", st_mode=0o140777, st_ino=inode, flags=0o2,
        sockopts=options | more.pop("options", {}),
        socket_name=b"\1\0" + name,
        socket_peer=None if peer is None else b"\1\0" + peer,
        netlinks={ASK: diag + DONE}, **more,
    )  # fmt: skip


def collect(views, **more):
    context = dump_context(
        views={FileId(i): v for i, v in enumerate(views, 1)},
        holders={FileId(i): [Holder(task=41, fd=v.fd)] for i, v in enumerate(views, 1)},
        **more,
    )
    states = {i: KIND.collect(v, context) for i, v in context.views.items()}
    return states, list(KIND.check(states, context))


def test_matches_only_unix_sockets():
    assert KIND.matches(view(7, b""))
    assert not KIND.matches(view(7, b"", options={(SOL, DOMAIN): word(2)}))
    assert not KIND.matches(RecordedFd(link="socket:[7]"))


def test_pair():
    diag = entry(7, peer=8) + entry(8, peer=7)
    queue = [Message(data=b"hello")]
    states, refused = collect(
        [view(7, diag, peer=b""), view(8, diag, fd=4, peer=b"", messages=queue)]
    )
    assert not refused
    assert states[2] == UnixState(
        inode=8, kind=STREAM, flags=2, peer=7, options=PLAIN, queue=tuple(queue)
    )
    back, images = through_images(KIND, states)
    assert back == states
    message, payload = next(images.entries("sk-queues"))
    assert (message.id_for, message.length, payload) == (2, 5, b"hello")
    one, two = "  # fd 3 -> unix:[7]", "  # fd 4 -> unix:[8]"
    assert described(KIND, back, plan_context(1, 2)).splitlines() == [
        f"socketpair(1, 1, 0, buffer[8]){one}",
        "@load32(buffer[8], 0) → unix_end1",
        "@load32(buffer[8], 4) → unix_end2",
        f"dup3($unix_end1, 513, 0){one}",
        f"close($unix_end1){one}",
        f"dup3($unix_end2, 514, 0){two}",
        f"close($unix_end2){two}",
        f"sendto(513, <5 bytes>, 5, 0x4040, 0, 0){two}: queued again",
    ]


def test_listener_and_accepted_end():
    name = b"/run/x.sock\0"
    diag = (
        entry(7, state=10, name=name, queues=(0, 64), vfs=(99, 5))
        + entry(8, peer=9)
        + entry(9, name=name, peer=8, vfs=(99, 5))
    )
    paths = {"/run/x.sock": (5, 99)}
    views = [
        view(7, diag, name=name, listening=1, paths=paths),
        view(8, diag, fd=4, peer=name, paths=paths),
        view(9, diag, fd=5, name=name, peer=b"", paths=paths),
    ]
    states, refused = collect(views)
    assert not refused
    assert states[1].listening
    assert (states[1].backlog, states[1].place.deleted) == (64, False)
    back, _ = through_images(KIND, states)
    assert back == states
    server, client, accepted = (f"  # fd {n} -> unix:[{n + 4}]" for n in (3, 4, 5))
    server += " /run/x.sock"
    accepted += " /run/x.sock"
    assert described(KIND, back, plan_context(1, 2, 3)).splitlines() == [
        f"socket(1, 1, 0) → new513{server}",
        f"dup3($new513, 513, 0){server}",
        f"close($new513){server}",
        f"mknodat(-100, '/run/x.sock', 0xc180, 0) → made /run/x.sock{server}",
        f"openat(-100, '/run/x.sock', 0x20800, 0){server}: a socket gives ENXIO",
        f"unlinkat(-100, '/run/x.sock', 0){server}: left by an earlier run",
        f"bind(513, '/run/x.sock', 14){server}: /run/x.sock",
        f"fchownat(-100, '/run/x.sock', 0, 0, 0){server}",
        f"fchmodat(-100, '/run/x.sock', 511){server}",
        f"listen(513, 64){server}",
        f"socket(1, 1, 0) → unix_client1{client}",
        f"connect($unix_client1, '/run/x.sock', 14){client}: /run/x.sock",
        f"accept4(513, 0, 0, 0) → unix_accepted2{accepted}",
        f"dup3($unix_client1, 514, 0){client}",
        f"close($unix_client1){client}",
        f"dup3($unix_accepted2, 515, 0){accepted}",
        f"close($unix_accepted2){accepted}",
    ]


def test_file_that_was_replaced_is_a_deleted_name():
    diag = entry(7, kind=DGRAM, state=7, name=b"/run/x\0", vfs=(99, 5))
    paths = {"/run/x": (5, 100), "/run": (5, 1)}
    states, _ = collect([view(7, diag, kind=DGRAM, name=b"/run/x\0", paths=paths)])
    assert states[1].place.deleted
    assert_made_aside(described(KIND, states, plan_context(1)))


def assert_made_aside(text):
    """Bound in a directory for the purpose as its root, and removed."""
    lines = [line.partition("  #")[0] for line in text.splitlines() if "Expect" not in line]
    at = lines.index("chroot('.')")
    assert lines[at - 1] == "chdir('/run/.torpor-7')"
    assert lines[at + 1].startswith("bind(513, '/run/x'")
    assert lines[at + 2].startswith("fchdir($root of /run/.torpor-7")
    assert "renameat2(-100, '/run/.torpor-7/run/x', -100, '/run/.torpor-7/s', 0)" in lines
    assert "fchmodat" not in text
    assert lines[-2:] == [
        "unlinkat(-100, '/run/.torpor-7/s', 0)", "unlinkat(-100, '/run/.torpor-7', 512)",
    ]  # fmt: skip


def bound_view(name, paths, bound, **more):
    diag = entry(7, kind=DGRAM, state=7, name=name, vfs=(99, 5))
    return view(7, diag, kind=DGRAM, name=name, paths=paths, bound=bound, **more)


def test_file_that_was_moved_is_moved_again():
    found = BoundFile(paths=("/run/new", "/run/link"), was="/run/new", folder="/run", links=2)
    states, _ = collect([bound_view(b"/run/old\0", {}, found)])
    place = states[1].place
    assert (place.at, place.links, place.deleted) == ("/run/new", ("/run/link",), False)
    back, images = through_images(KIND, states)
    assert back == states
    assert next(m for m, _ in images.entries("files")).usk.name == b"/run/new\0"
    text = described(KIND, back, plan_context(1))
    assert "bind(513, '/run/old'" in text
    assert "renameat2(-100, '/run/.torpor-7/s', -100, '/run/new', 0)" in text
    assert "linkat(-100, '/run/new', -100, '/run/link', 0)" in text


def test_second_name_of_a_file_that_is_in_its_place():
    found = BoundFile(paths=("/run/x", "/run/link"), was="/run/x", folder="/run", links=2)
    states, _ = collect([bound_view(b"/run/x\0", {"/run/x": (5, 99)}, found)])
    assert (states[1].place.at, states[1].place.links) == ("", ("/run/link",))
    text = described(KIND, states, plan_context(1))
    assert "chroot" not in text
    assert "linkat(-100, '/run/x', -100, '/run/link', 0)" in text


def test_relative_name_is_of_the_directory_where_its_file_is():
    found = BoundFile(paths=("/run/x",), was="/run/x", folder="/run")
    states, _ = collect([bound_view(b"x\0", {"/run/x": (5, 99)}, found)])
    assert states[1].place.directory == "/run"
    back, _ = through_images(KIND, states)
    assert back == states
    text = described(KIND, back, plan_context(1))
    assert text.index("chdir('/run')") < text.index("bind(513, 'x'")
    assert "fchmodat(-100, '/run/x'" in text


def test_relative_name_above_its_directory():
    found = BoundFile(paths=("/run/up",), was="/run/up", folder="/run")
    states, _ = collect([bound_view(b"../up\0", {}, found)])
    text = described(KIND, states, plan_context(1))
    assert text.index("chdir('/run/.torpor-7/d')") < text.index("bind(513, '../up'")
    assert "renameat2(-100, '/run/.torpor-7/up', -100, '/run/.torpor-7/s', 0)" in text
    assert "renameat2(-100, '/run/.torpor-7/s', -100, '/run/up', 0)" in text


def test_names_that_are_not_found_are_told():
    warnings = []
    found = BoundFile(paths=(), was="/run/x", folder="/run", links=2)
    collect([bound_view(b"/run/x\0", {}, found)], warn=warnings.append)
    assert "2 names of its file were not found" in warnings[0]


def creator_of(pid, uid, gid):
    return {(SOL, 17): struct.pack("<iII", pid, uid, gid), (SOL, 59): word(30)}


def test_made_by_another_task_and_user():
    diag = entry(7, state=10, name=b"\0srv")
    views = [view(7, diag, name=b"\0srv", listening=1, options=creator_of(42, 1000, 1001))]
    states, _ = collect(views, tasks={41: 1, 42: 2})
    assert states[1].creator == Creator(pid=2, uid=1000, gid=1001, groups=(30,))
    back, _ = through_images(KIND, states)
    assert back == states
    context = plan_context(1, root=1)
    lines = described(KIND, back, context).splitlines()
    assert context.helpers == {2}
    at = next(i for i, line in enumerate(lines) if line.startswith("listen("))
    assert [line.partition("(")[0] for line in lines[at - 4 : at + 4]] == [
        "setgroups", "setresgid", "setresuid", "setfsuid", "listen", "setresuid", "setresgid",
        "setgroups",
    ]  # fmt: skip
    assert all(line.endswith("by task 2") for line in lines[at - 4 : at + 4])


def test_credentials_of_a_message():
    diag = entry(7, peer=8) + entry(8, peer=7)
    queue = [Message(data=b"hello", creds=(42, 5, 6)), Message(data=b"lost", creds=(99, 0, 0))]
    warnings = []
    states, _ = collect(
        [view(7, diag, peer=b""), view(8, diag, fd=4, peer=b"", messages=queue)],
        tasks={41: 1, 42: 2}, warn=warnings.append,
    )  # fmt: skip
    assert [m.creds for m in states[2].queue] == [(2, 5, 6), (0, 0, 0)]
    assert "comes back with the root's pid" in warnings[0]
    back, _ = through_images(KIND, states)
    assert back == states
    sent = [x for x in described(KIND, back, plan_context(1, 2, root=1)).splitlines() if "msg" in x]
    assert [line.endswith("by task 2") for line in sent] == [True, False]


@pytest.mark.parametrize(("name", "kept"), [
    (b"", b""), (b"/a\0", b"/a"), (b"/a\0junk", b"/a"), (b"\0abc", b"\0abc"),
    (b"\0a\0b\0", b"\0a\0b\0"),
])  # fmt: skip
def test_names(name, kept):
    assert unix.strip_name(name) == kept


def test_peer_outside_is_refused_and_named():
    diag = entry(7, peer=8, name=None)
    _, refused = collect([view(7, diag, peer=b"/run/dbus\0")])
    assert [r.what for r in refused] == [unix.OUTSIDE.what]
    assert "/run/dbus" in refused[0].cause
    assert refused[0].subject == "task 41, fd 3 -> socket:[7]"
    named = frozenset({"unix[7]"})
    assert collect([view(7, diag, peer=b"/run/dbus\0")], external=named)[1] == []


def test_stdio_of_a_container_may_lead_outside():
    diag = entry(7, peer=8)
    states, refused = collect([view(7, diag, fd=1, peer=b"")], container=True)
    assert not refused
    context = plan_context(1, stdio={1: 601}, holders={FileId(1): [Holder(task=41, fd=1)]})
    assert described(KIND, states, context) == (
        "dup3(601, 513, 0)  # fd 1 -> unix:[7]: from outside"
    )
    with pytest.raises(Refused, match="outside of the tree"):
        KIND.plan(states, plan_context(1))
    _, images = through_images(KIND, states)
    assert next(m for m, _ in images.entries("files")).usk.uflags == 1


def test_syslog_is_connected_again_with_a_warning():
    warnings = []
    diag = entry(7, kind=DGRAM, peer=8)
    states, refused = collect([view(7, diag, kind=DGRAM, peer=b"/dev/log\0")], warn=warnings.append)
    assert not refused
    assert "/dev/log" in warnings[0]
    back, _ = through_images(KIND, states)
    assert "connect(513, '/dev/log', 11)" in described(KIND, back, plan_context(1))


def test_client_that_a_server_outside_has_not_accepted_is_refused():
    _, refused = collect([view(7, entry(7, peer=0), peer=b"/run/x\0")])
    assert [r.what for r in refused] == [unix.OUTSIDE.what]


def in_flight(link, data=b"take"):
    """Ends 7 and 8; at 8 waits a message that carries file 3."""
    diag = entry(7, peer=8) + entry(8, peer=7)
    carrier = view(8, diag, fd=4, peer=b"", messages=[Message(data=data, fds=1)])
    views = {1: view(7, diag, peer=b""), 2: carrier, 3: RecordedFd(link=link)}
    context = dump_context(
        views={FileId(i): v for i, v in views.items()},
        holders={FileId(i): [Holder(task=41, fd=2 + i)] for i in (1, 2)},
        in_flight={8: [(FileId(3),)]},
    )
    states = {FileId(i): KIND.collect(views[i], context) for i in (1, 2)}
    return states, list(KIND.check(states, context))


def test_descriptors_in_flight_are_sent_again():
    states, refused = in_flight("pipe:[9]")
    assert not refused
    assert states[2].queue[0].rights == (3,)
    back, images = through_images(KIND, states)
    assert back == states
    ((queued, payload),) = images.entries("sk-queues")
    assert payload == b"take"
    assert [(c.type, [*c.rights]) for c in queued.scm] == [(1, [3])]
    line = next(x for x in described(KIND, back, plan_context(1, 2, 3)).splitlines() if "msg" in x)
    assert line.startswith("sendmsg(513, message of 4 bytes, 0x4040)")
    assert line.endswith("queued again with what it carries")


def test_what_is_made_too_late_is_refused_in_flight():
    _, refused = in_flight("anon_inode:[eventpoll]")
    assert [r.what for r in refused] == [unix.IN_FLIGHT.what]


def test_waiting_clients():
    name = b"\0srv"
    diag = entry(7, state=10, name=name, pending=(8, 9)) + entry(8, peer=0) + entry(9, peer=0)
    views = [view(7, diag, name=name, listening=1), view(9, diag, fd=4, peer=name)]
    _, refused = collect(views)
    assert [r.what for r in refused] == [unix.UNACCEPTED_OUTSIDE.what]
    views.append(view(8, diag, fd=5, peer=name))
    states, refused = collect(views)
    assert not refused
    back, _ = through_images(KIND, states)
    text = described(KIND, back, plan_context(1, 2, 3))
    assert text.index("connect(515") < text.index("connect(514")
    assert "accept4" not in text


def test_one_way_datagrams_to_a_nameless_socket():
    diag = entry(7, kind=DGRAM, peer=8) + entry(8, kind=DGRAM, state=7)
    views = [view(8, diag, fd=4, kind=DGRAM), view(7, diag, kind=DGRAM, peer=b"")]
    states, refused = collect(views)
    assert not refused
    text = described(KIND, states, plan_context(1, 2))
    assert text.startswith("socketpair(1, 2, 0")
    assert "connect(513, AF_UNSPEC, 2)" in text
    diag += entry(9, kind=DGRAM, peer=8)
    _, refused = collect([*views, view(9, diag, fd=5, kind=DGRAM, peer=b"")])
    assert [r.what for r in refused] == [unix.NAMELESS_PEER.what] * 2


def test_relative_name_without_directory_is_refused():
    diag = entry(7, state=10, name=b"x.sock\0")
    with pytest.raises(Refused, match="relative path"):
        collect([view(7, diag, name=b"x.sock\0", listening=1)])


def test_image_of_criu_without_our_facts():
    images = RecordedImages()
    plain = pb.sk_opts_entry(
        so_sndbuf=212992, so_rcvbuf=212992, so_snd_tmo_sec=0, so_snd_tmo_usec=0,
        so_rcv_tmo_sec=0, so_rcv_tmo_usec=0,
    )  # fmt: skip
    owner = pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
    for number, peer in ((1, 12), (2, 11)):
        message = pb.unix_sk_entry(
            id=number, ino=10 + number, type=1, state=1, flags=2, uflags=0, backlog=0, peer=peer,
            fown=owner, opts=plain, name=b"",
        )  # fmt: skip
        images.add("files", pb.file_entry(type=pb.UNIXSK, id=number, usk=message))
    states = KIND.decode(images)
    assert (states[1].peer, states[2].peer) == (12, 11)
    assert described(KIND, states, plan_context(1, 2)).startswith("socketpair(1, 1, 0")


def test_options_and_flags_are_kept():
    options = replace(
        PLAIN, buf_lock=1, sndbuf_bytes=100000, linger_s=7, receive_timeout_us=1_500_000,
        filter=struct.pack("<HBBI", 6, 0, 0, 65535), values=((1, 16, 1), (1, 42, 3)),
    )  # fmt: skip
    state = UnixState(inode=7, kind=DGRAM, flags=0o4002, options=options)
    back, _ = through_images(KIND, {FileId(1): state})
    assert back == {1: state}
    text = described(KIND, back, plan_context(1))
    for part in (
        "SO_PASSCRED = 1",
        "SO_PEEK_OFF = 3",
        "SO_LINGER = 7 s",
        "SO_RCVTIMEO",
        "SO_ATTACH_FILTER",
        "SO_SNDBUF = 50000",
        "SO_BUF_LOCK = 1",
        "fcntl(513, 4, 2048)",
    ):
        assert part in text  # fmt: skip
    assert "SO_RCVBUF" not in text

# SPDX-License-Identifier: Apache-2.0
"""TCP_REPAIR never outlives the engine; the network lock holds packets for as long as it should."""

import os
import signal
import socket
import time

import pytest

from torpor.engine.kernel import nftables, repair

pytestmark = [pytest.mark.functional, pytest.mark.root]
TCP_REPAIR = 19


def pair():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    return one, two


def netfilter():
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, nftables.NETLINK_NETFILTER)


def test_a_look_changes_nothing():
    one, two = pair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    two.send(b"to one")
    guard = repair.Guard()
    with one, two:
        found = repair.read(one.fileno(), guard, "x", connected=True)
        guard.end()
        assert (found.received, found.sent, len(found.window)) == (b"to one", b"", 5)
        assert one.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) == 0
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert one.recv(10) == b"to one"
        one.send(b"x")
        assert two.recv(1) == b"x"


@pytest.mark.parametrize("reuse", [0, 1])
def test_a_socket_leaves_repair_mode_when_the_engine_is_killed(reuse):
    one, two = pair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    engine = os.fork()
    if engine == 0:
        guard = repair.Guard()
        repair.keep_silent(one.fileno(), guard, "x")
        signal.pause()
        os._exit(1)
    with one, two:
        deadline = time.monotonic() + 20
        while not one.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(engine, signal.SIGKILL)
        os.waitpid(engine, 0)
        while one.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
            assert time.monotonic() < deadline, "still in repair mode"
            time.sleep(0.001)
        while one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) != reuse:
            assert time.monotonic() < deadline, "SO_REUSEADDR is lost"
            time.sleep(0.001)
        one.send(b"x")
        assert two.recv(1) == b"x"


def test_a_lock_holds_packets_and_ends_with_its_owner():
    one, two = pair()
    ends = [end.getsockname() for end in (one, two)]
    (here, port), (there, far) = ends
    connection = (socket.inet_aton(here), port, socket.inet_aton(there), far)
    with one, two, netfilter() as owner:
        nftables.lock(owner.fileno(), "torpor-test", [connection], owned=True)
        one.send(b"x")
        two.settimeout(0.1)
        with pytest.raises(TimeoutError):
            two.recv(1)
        owner.close()
        two.settimeout(20)
        assert two.recv(1) == b"x"
        assert not nftables.unlock("torpor-test")


def test_a_lock_that_stays_is_unlocked_by_name():
    with netfilter() as owner:
        place = bytes(15) + b"\1"
        many = [(place, number, place, 1) for number in range(2000)]
        nftables.lock(owner.fileno(), "torpor-test", many, owned=False)
    assert nftables.unlock("torpor-test")
    assert not nftables.unlock("torpor-test")


def test_the_table_of_a_dump_is_named_as_criu_names_it():
    name = nftables.table_name("9c9b1644-46ca-4a38-9f12-0123456789ab")
    assert name == "CRIU-9c9b1644-46ca-4a38-9f"

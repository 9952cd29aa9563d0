# SPDX-License-Identifier: Apache-2.0
"""criu locks the network by rules of iptables, and our restore takes them away."""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import traceback

import pytest

from tests.compat.criu_root import Unavailable, iptables_folder
from tests.functional.catalogue.every import CASES
from tests.functional.conftest import program
from tests.functional.harness import Live

pytestmark = [pytest.mark.root, pytest.mark.compat]
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
BY_NAME = {case.name: case for case in CASES}


def rules():
    """What drops something."""
    found = []
    for name in ("iptables", "ip6tables"):
        told = subprocess.run([name, "-S"], capture_output=True, text=True, check=True)
        found += [line for line in told.stdout.splitlines() if "DROP" in line]
    return found


def own_network():
    assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
    with socket.socket() as one:
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def goes_on(folder, criu, case):
    own_network()
    live = Live(folder, [*program(case.program), str(folder), *case.arguments])
    try:
        live.await_ready()
        images = folder / "images"
        images.mkdir()
        dump = ("dump", "-t", str(live.pid), "-D", str(images), "--network-lock", "iptables")
        subprocess.run([*criu.criu(*dump), *case.options], check=True, capture_output=True)
        live.reap(live.pids)
        assert len(rules()) == 2
        live.restore(words=case.restore_options)
        assert not rules()
        assert live.verdict() == "ok"
    finally:
        live.end()


@pytest.mark.parametrize("name", ["v4", "v6"])
def test_rules_of_criu_are_taken_away(criu_root, tmp_path, monkeypatch, name):
    try:
        folder = iptables_folder()
    except Unavailable as missing:
        pytest.skip(f"sid's CRIU cannot be had: {missing}")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    tmp_path.chmod(0o777)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            goes_on(tmp_path, criu_root, BY_NAME[f"sockets_tcp {name}"])
        except BaseException:  # noqa: BLE001 (it is told by the parent)
            os.write(writer, traceback.format_exc().encode()[-60000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == ""
    os.waitpid(pid, 0)

# SPDX-License-Identifier: Apache-2.0
"""The agent as a whole: watches, health, metrics, settings; and its small helpers."""

import errno
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from torpor.engine.errors import BadImage, Denied, KernelError, Unavailable, Vanished
from torpor.plugin.agent import main as agent_main
from torpor.plugin.agent.main import Agent
from torpor.plugin.agent.nodefacts import check_node, cpu_flags, node_facts
from torpor.plugin.agent.pidhelper import PidHelper
from torpor.plugin.agent.procview import NodeView
from torpor.plugin.k8s.kinds import CHECKPOINTS

NS = "ns"


def settings(tmp_path: Path, port: int):
    return agent_main.Settings(
        node_name="node-a", stores={}, staging=tmp_path, view=NodeView(cgroups=tmp_path),
        pid_helper=tmp_path / "sock", workers=1, listen=("127.0.0.1", port), kubeconfig="",
        context="", log_level="info",
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except urllib.error.URLError:  # it does not listen yet
        return 0, ""


def eventually(check, within_s: float = 10.0):
    deadline_s = time.monotonic() + within_s
    while not (found := check()):
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.02)
    return found


def labelled(world, name, node="node-a"):
    item = world.checkpoint(name)
    item["metadata"]["labels"] = {"torpor.dev/node": node}
    return world.api.put(CHECKPOINTS, item)


def test_runs_serves_and_stops(world, tmp_path: Path):
    pod = world.pod()
    world.run_container(pod, "app", 100)
    port = free_port()
    stop = threading.Event()
    thread = threading.Thread(
        target=agent_main.run, args=(world.context, settings(tmp_path, port), stop)
    )
    thread.start()
    try:
        eventually(lambda: fetch(port, "/readyz")[0] == 200)
        assert fetch(port, "/healthz")[0] == 200
        assert fetch(port, "/nope")[0] == 404
        labelled(world, "mine")
        labelled(world, "theirs", "node-b")

        def is_stored():
            found = world.conditions(CHECKPOINTS, "mine")[1]
            return found.get("Stored", {}).get("status") == "True"

        eventually(is_stored)
        eventually(lambda: 'kind="Checkpoint",reason="Completed"' in fetch(port, "/metrics")[1])
        assert "torpor_agent_freeze_seconds_bucket" in fetch(port, "/metrics")[1]
        assert "Stored" not in world.conditions(CHECKPOINTS, "theirs")[1]
    finally:
        stop.set()
        thread.join(15)
    assert not thread.is_alive()
    assert world.engine.calls == ["dump", "thaw"]


def test_agent_survives_a_lost_watch(world):
    pod = world.pod()
    world.run_container(pod, "app", 100)
    agent = Agent(world.context, workers=1)
    agent.start()
    try:
        eventually(lambda: agent.ready)
        world.api.break_watches()
        world.api.compact()
        labelled(world, "mine")
        eventually(lambda: "Stored" in world.conditions(CHECKPOINTS, "mine")[1], 20)
    finally:
        agent.stop()
        world.api.break_watches()
    assert not agent.ready


def test_settings(monkeypatch, capsys):
    monkeypatch.delenv("NODE_NAME", raising=False)
    assert agent_main.main([]) == 3
    assert "NODE_NAME" in capsys.readouterr().err
    assert agent_main.main(["--node-name", "n", "--stores", "["]) == 3
    assert "TORPOR_STORES" in capsys.readouterr().err
    monkeypatch.setenv("NODE_NAME", "n")
    monkeypatch.setenv("TORPOR_CGROUP_ROOT", "/host/cg")
    monkeypatch.setenv("TORPOR_STORES", '{"a": "/stores/a"}')
    found = agent_main._settings([])
    assert found.view.cgroups == Path("/host/cg")
    assert found.stores == {"a": "/stores/a"}
    assert found.listen == ("0.0.0.0", 9808)


# ---- pid helper ---------------------------------------------------------------------------


def helper(path: Path, answer: bytes, seen: list[bytes]) -> threading.Thread:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(path))
    server.listen(1)

    def serve():
        with server:
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(100))
                if answer:
                    connection.send(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (struct.pack("=i", 0), None),
        (struct.pack("=i", errno.EPERM), Denied),
        (struct.pack("=i", -errno.ESRCH), Vanished),
        (struct.pack("=i", errno.EINVAL), KernelError),
        (b"", Unavailable),
        (b"12345", Unavailable),
    ],
)
def test_pid_helper(tmp_path: Path, answer: bytes, error):
    seen: list[bytes] = []
    thread = helper(tmp_path / "s", answer, seen)
    client = PidHelper(tmp_path / "s")
    if error:
        with pytest.raises(error):
            client.choose(4711, 42)
    else:
        client.choose(4711, 42)
    thread.join()
    assert seen == [struct.pack("=Iii", 1, 4711, 42)]


PROGRAM = bytes(range(16))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (struct.pack("=iIQ", 0, 2, 5) + PROGRAM, None),
        (struct.pack("=i", errno.EACCES), Denied),
        (struct.pack("=i", errno.ESRCH), Vanished),
        (struct.pack("=i", errno.ENOENT), Vanished),
        (struct.pack("=i", errno.ETIMEDOUT), KernelError),
        (struct.pack("=iIQ", 0, 3, 5) + PROGRAM, Unavailable),
        (bytes(12), Unavailable),
        (b"", Unavailable),
    ],
)
def test_pid_helper_reads_filters(tmp_path: Path, answer: bytes, error):
    seen: list[bytes] = []
    thread = helper(tmp_path / "s", answer, seen)
    client = PidHelper(tmp_path / "s")
    if error:
        with pytest.raises(error):
            client.filter(4711, 1)
    else:
        assert client.filter(4711, 1) == (PROGRAM, 5)
    thread.join()
    assert seen == [struct.pack("=Iii", 2, 4711, 1)]


def test_no_pid_helper(tmp_path: Path):
    with pytest.raises(Unavailable, match="cannot be reached"):
        PidHelper(tmp_path / "s").choose(1, 2)


# ---- node facts ---------------------------------------------------------------------------


def test_cpu_flags(tmp_path: Path):
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu sse2 avx512f acpi xsave\n")
    (tmp_path / "arm").write_text("Features\t: fp asimd sve evtstrm\n")
    (tmp_path / "odd").write_text("processor : 0\n")
    assert cpu_flags(tmp_path / "x86") == ("avx512f", "sse2", "xsave")
    assert cpu_flags(tmp_path / "arm") == ("asimd", "sve")
    assert cpu_flags(tmp_path / "odd") == ()


def test_check_node():
    here = node_facts("a", ("avx",))
    check_node(here, ("avx",), ("avx", "avx2"))
    with pytest.raises(Unavailable) as caught:
        check_node(here, ("avx", "avx512f"), ("avx",))
    assert "avx512f" in caught.value.cause
    from dataclasses import replace

    with pytest.raises(BadImage, match="another architecture"):
        check_node(replace(here, arch="vax"), (), ())

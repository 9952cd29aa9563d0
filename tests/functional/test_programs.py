# SPDX-License-Identifier: Apache-2.0
"""Programs that people run: redis, nginx, a threaded HTTP service, a shell pipeline."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.functional.harness import Live

pytestmark = [pytest.mark.functional, pytest.mark.root]
WORKLOADS = Path(__file__).parent / "workloads"


@pytest.fixture
def run(tmp_path):
    begun = []

    def begin(*command, **options):
        live = Live(tmp_path, command, **options)
        begun.append(live)
        return live

    yield begin
    for live in begun:
        live.end()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def eventually(probe, what):
    deadline = time.monotonic() + 20
    while True:
        with suppress(OSError, http.client.HTTPException):
            if (got := probe()) is not None:
                return got
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def there_and_back(live):
    live.settle()
    before = live.look()
    for name in ("first", "second"):
        live.dump(name)
        live.restore(name)
        live.same_as(before)


class Redis:
    """A client that speaks as little of the protocol as is needed."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.connect(address)
        self.file = self.socket.makefile("rwb")

    def __call__(self, *words):
        parts = [str(word).encode() for word in words]
        text = b"*%d\r\n" % len(parts)
        text += b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self.file.write(text)
        self.file.flush()
        return self.answer()

    def answer(self):
        line = self.file.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.file.read(size + 2)[:-2]
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        assert kind in b"+:", line
        return int(rest) if kind == b":" else rest

    def close(self):
        self.file.close()
        self.socket.close()


def test_redis(run, tmp_path):
    assert shutil.which("redis-server"), "tools/run_tests.py installs it"
    port, path = free_port(), str(tmp_path / "redis.sock")
    where = ("--port", port, "--bind", "127.0.0.1", "--unixsocket", path, "--dir", tmp_path)
    live = run("redis-server", *where, "--save", "", "--appendonly", "no", "--daemonize", "no")
    client = eventually(lambda: Redis(path), live.log)
    for number in range(2000):
        client("SET", f"key {number}", f"value {number} " * 20)
    client("RPUSH", "list", *range(500))
    script = client("SCRIPT", "LOAD", "return redis.call('LLEN', KEYS[1]) * 2")
    client.close()
    time.sleep(0.3)  # it forgets the client
    there_and_back(live)
    for address in (path, ("127.0.0.1", port)):
        client = Redis(address)
        assert client("GET", "key 1234") == b"value 1234 " * 20
        assert client("DBSIZE") == 2001
        assert client("EVALSHA", script.decode(), 1, "list") == 1000
        assert client("PING") == b"PONG"
        client.close()


def test_redis_with_a_client_inside(run, tmp_path):
    """Server and a client on its Unix socket in one tree; the client counts on."""
    path = tmp_path / "redis.sock"
    live = run(sys._base_executable, WORKLOADS / "core_redis.py", tmp_path, path)
    live.await_file("ready")
    live.pids |= set(map(int, (tmp_path / "pids").read_text().split()))
    for name in ("first", "second"):
        live.dump(name)
        live.restore(name)
        goal = int((tmp_path / "count").read_text()) + 20
        eventually(lambda n=goal: int((tmp_path / "count").read_text()) > n or None, live.log)
    assert live.verdict() == "ok"


def test_nginx(run, tmp_path):
    assert shutil.which("nginx"), "tools/run_tests.py installs it"
    port = free_port()
    (tmp_path / "page").write_text("a page\n" * 1000)
    (tmp_path / "conf").write_text(
        f"daemon off; worker_processes 2; user root; pid {tmp_path}/pid;\n"
        f"error_log {tmp_path}/errors; events {{ worker_connections 64; }}\n"
        f"http {{ access_log {tmp_path}/access; client_body_temp_path {tmp_path};\n"
        f" proxy_temp_path {tmp_path}; fastcgi_temp_path {tmp_path}; uwsgi_temp_path {tmp_path};\n"
        f" scgi_temp_path {tmp_path}; server {{ listen 127.0.0.1:{port}; root {tmp_path}; }} }}\n"
    )
    live = run("nginx", "-p", tmp_path, "-c", tmp_path / "conf", "-e", tmp_path / "errors")

    def page():
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        client.request("GET", "/page", headers={"Connection": "close"})
        text = client.getresponse().read()
        client.close()
        return text

    eventually(page, live.log)
    time.sleep(0.2)
    there_and_back(live)
    for _ in range(20):
        assert page() == b"a page\n" * 1000
    os.kill(live.pid, signal.SIGHUP)  # the master makes new workers
    time.sleep(0.5)
    live.pids |= set(
        map(int, Path(f"/proc/{live.pid}/task/{live.pid}/children").read_text().split())
    )
    assert page() == b"a page\n" * 1000
    deadline = time.monotonic() + 5  # a worker logs after it has answered
    while (lines := (tmp_path / "access").read_text().count("GET /page")) != 22:
        assert time.monotonic() < deadline, f"{lines} lines in the log"
        time.sleep(0.05)


def test_threaded_http_service(run, tmp_path):
    port = free_port()
    live = run(sys._base_executable, WORKLOADS / "core_http.py", tmp_path, port)

    def ask():
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        client.request("GET", "/", headers={"Connection": "close"})
        told = json.loads(client.getresponse().read())
        client.close()
        return told

    first = eventually(ask, live.log)
    time.sleep(0.2)
    live.dump("first")
    live.restore("first")
    second = eventually(ask, live.log)
    live.dump("second")
    live.restore("second")
    third = eventually(ask, live.log)
    assert [first["asked"], second["asked"], third["asked"]] == [1, 2, 3]
    assert first["started"] == third["started"]
    assert first["beats"] < second["beats"] < third["beats"]
    assert third["spool"] == ["asked 1\n", "asked 2\n", "asked 3\n"]


def test_shell_pipeline(run, tmp_path):
    """`make numbers | double | file`: stopped in the middle, nothing lost or twice."""
    script = (
        f"cd {tmp_path}; touch ready; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; "
        "[ -e go ] || sleep 0.002; done | while read n; do echo $((n * 2)); done | cat > out; "
        "sort -n -c out && echo ok > result.part && mv result.part result"
    )
    live = run("bash", "-c", script)
    live.await_file("ready")
    for name in ("first", "second"):
        eventually(lambda: (tmp_path / "out").exists() or None, live.log)
        live.pids |= {live.pid}
        live.dump(name)
        live.restore(name)
    assert live.verdict() == "ok\n"
    lines = (tmp_path / "out").read_text().split()
    assert lines == [str(2 * number) for number in range(1, 3001)]


def test_busybox_shell(run, tmp_path):
    """A static program, and one that has other programs below it."""
    busybox = shutil.which("busybox")
    assert busybox, "tools/run_tests.py installs it"
    script = f"cd {tmp_path}; n=7; {busybox} sleep 1000 & trap 'echo $n > told' USR1; touch ready; "
    live = run(busybox, "sh", "-c", script + "while :; do wait; done")
    live.await_file("ready")
    there_and_back(live)
    os.kill(live.pid, signal.SIGUSR1)
    assert eventually(lambda: (tmp_path / "told").read_text() or None, live.log) == "7\n"


def test_the_installed_programs_run_no_service():
    """Packages of tests are installed with services off."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "redis-server 127.0.0.1:6379" not in listed.stdout

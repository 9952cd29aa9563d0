# SPDX-License-Identifier: Apache-2.0
"""A redis server and a client of its on a Unix socket, which counts without pause."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

place, path = Path(sys.argv[1]), sys.argv[2]


def put(name, text):
    (place / f"{name}.part").write_text(str(text))
    (place / f"{name}.part").rename(place / name)


def connected():
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(path)
        except OSError:
            one.close()
            time.sleep(0.02)
        else:
            return one
    raise SystemExit("no server")


server = subprocess.Popen(
    ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", place]
)
client = connected()
put("pids", f"{os.getpid()} {server.pid}")
try:
    counted = 0
    while not (place / "go").exists() or counted < 10:
        client.sendall(b"INCR count\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += client.recv(100)
        counted += 1
        assert answer == b":%d\r\n" % counted, (answer, counted)
        put("count", counted)
        if counted == 10:
            put("ready", "")
        time.sleep(0.002)
    server.terminate()
    assert server.wait(10) == 0
    put("result", "ok")
except BaseException as error:
    put("result", repr(error))
    raise

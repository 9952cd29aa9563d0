# SPDX-License-Identifier: Apache-2.0
"""Programs of a desktop: a bus, an X server with a terminal, a browser without a screen."""

import base64
import json
import os
import shlex
import socket
import struct
import urllib.request
from collections.abc import Generator
from typing import Any

from tests.programs.servers import command
from tests.programs.stage import ADOPTING, Stage

Steps = Generator[None, None, None]
TEXT_FRAME, MASKED, LONG = 0x81, 0x80, 126


def dbus(stage: Stage) -> Steps:
    """A bus, and a client on it that owns a name."""
    address = f"unix:path={stage.folder}/bus"
    stage.shell(
        f"cd {stage.folder}; dbus-daemon --session --nofork --address={address} & "
        f"until [ -S bus ]; do sleep 0.1; done; "
        f"DBUS_SESSION_BUS_ADDRESS={address} dbus-monitor --profile > seen & wait"
    )

    def names() -> str | None:
        return command(
            "dbus-send", f"--bus={address}", "--print-reply", "--dest=org.freedesktop.DBus",
            "/org/freedesktop/DBus", "org.freedesktop.DBus.ListNames",
        )  # fmt: skip

    stage.eventually(names, "no bus")
    stage.eventually(lambda: stage.text("seen"), "the monitor is mute")
    for _ in range(2):
        seen = len(stage.text("seen") or "")
        yield
        assert "org.freedesktop.DBus" in (names() or "")
        stage.eventually(lambda s=seen: len(stage.text("seen") or "") > s or None, "mute")


def xterm(stage: Stage) -> Steps:
    """A terminal of an X server, in which a shell counts."""
    counting = "i=0; while :; do i=$((i+1)); echo $i; echo $i > count; sleep 0.05; done"
    stage.busy = True
    stage.shell(
        f"cd {stage.folder}; exec 3>display; "
        "Xvfb -displayfd 3 -screen 0 320x200x24 -nolisten tcp & "
        "until [ -s display ]; do sleep 0.1; done; exec 3>&-; "
        f"DISPLAY=:$(cat display) xterm -e sh -c {shlex.quote(counting)} & wait"
    )
    stage.eventually(lambda: stage.text("count"), "it does not count")
    for _ in range(2):
        yield
        last = int(stage.text("count") or "0")
        stage.eventually(lambda n=last: int(stage.text("count") or "0") > n + 5 or None, "stands")


def chromium(stage: Stage) -> Steps:
    """A browser with its helpers; a page goes on with what a script has left in it."""
    port = stage.port()
    stage.run(
        *ADOPTING, "chromium", "--headless=new", "--no-sandbox",
        "--disable-gpu", f"--remote-debugging-port={port}",
        f"--user-data-dir={stage.folder}/profile", "about:blank",
        environment={**os.environ, "HOME": str(stage.folder)},
    )  # fmt: skip
    stage.busy = True
    script = "window.count = (window.count || 0) + 1"
    stage.eventually(lambda: evaluate(port, script), "no browser")
    first = evaluate(port, script)
    for number in range(2):
        yield
        assert evaluate(port, script) == first + number + 1


def evaluate(port: int, expression: str) -> Any:
    """What a script gives in the browser's first page (Chrome DevTools over a web socket)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
        pages = [one for one in json.load(answer) if one["type"] == "page"]
    path = "/" + pages[0]["webSocketDebuggerUrl"].split("/", 3)[3]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        key = base64.b64encode(os.urandom(16)).decode()
        one.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        stream = one.makefile("rb")
        while stream.readline().strip():
            pass
        asked = {"id": 1, "method": "Runtime.evaluate", "params": {"expression": expression}}
        text = json.dumps(asked).encode()
        header = struct.pack(">BBH4x", TEXT_FRAME, MASKED | LONG, len(text))  # a mask of zeros
        one.sendall(header + text)
        _, length = stream.read(2)
        if length == LONG:
            (length,) = struct.unpack(">H", stream.read(2))
        told = json.loads(stream.read(length))
    return told["result"]["result"]["value"]


PROGRAMS = {"D-Bus": dbus, "Xvfb with xterm": xterm, "Chromium (headless)": chromium}

# SPDX-License-Identifier: Apache-2.0
"""`torpor show` of what Debian's criu writes."""

import json
import sys
from pathlib import Path

import pytest

from torpor.engine.cli import main

from .criu_root import CriuRoot
from .test_images import HERE, dump, started

pytestmark = [pytest.mark.root, pytest.mark.compat]


def test_show_prints_images_of_criu(criu_root: CriuRoot, tmp_path: Path, capsys):
    (tmp_path / "w").mkdir()
    command = [sys.executable, str(HERE / "sample.py"), str(tmp_path / "w"), "comm"]
    with started(command, tmp_path / "w" / "ready") as pid:
        dump(criu_root, pid, tmp_path / "images")
    assert main(["show", str(tmp_path / "images"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (task,) = shown["tasks"]
    assert shown["origin"]["tool"] == "CRIU"
    assert task["pid"] == pid
    assert task["args"] == command
    kinds = {one["kind"] for one in task["descriptors"]}
    assert {
        "file",
        "pipe",
        "fifo",
        "unix socket",
        "eventfd",
        "epoll",
        "inotify",
        "timerfd",
        "signalfd",
        "memfd",
        "udp socket",
        "tcp socket",
        "netlink socket",
    } <= kinds
    by_kind = {one["kind"]: one for one in task["descriptors"]}
    assert by_kind["eventfd"]["detail"] == "counter 7"
    assert by_kind["memfd"]["name"] == "memfd:memory file"
    assert task["memory"]["stored_bytes"] > 1 << 20
    assert main(["show", str(tmp_path / "images")]) == 0
    assert f"task {pid} (" in capsys.readouterr().out

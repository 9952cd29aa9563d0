# SPDX-License-Identifier: Apache-2.0
"""What changes between the look at a tree and the stop: tasks that come, and clients that go."""

import os
import signal
import socket
import time

import pytest

from tests.functional.describe import tree
from tests.functional.harness import Live
from torpor.engine import api
from torpor.engine.dump.freeze import list_tasks
from torpor.engine.dump.permits import Permits
from torpor.engine.dump.preflight import check_newcomers, preflight
from torpor.engine.errors import Findings
from torpor.engine.kernel import proc, ptrace
from torpor.engine.options import After, DumpOptions, TcpPolicy

pytestmark = [pytest.mark.functional, pytest.mark.root]
SCRIPT = (
    "{ until [ -e go ]; do sleep 0.02; done; "
    "unshare --uts sh -c 'touch ready; exec sleep 1000'; } & "
    "touch up; wait"
)
ALL = Permits(suspended=True)


def test_a_namespace_of_a_newcomer_is_refused(tmp_path):
    live = Live(tmp_path, ["sh", "-c", f"cd {tmp_path}; {SCRIPT}"])
    try:
        live.await_file("up")
        options = DumpOptions(pid=live.pid, images_dir=tmp_path / "images")
        seen = preflight(options, ALL)
        assert live.pid in seen
        (tmp_path / "go").touch()
        live.await_file("ready")
        live.pids |= set(tree(live.pid))
        tasks = list_tasks(live.pid)
        with pytest.raises(Findings, match="namespace of its own"):
            check_newcomers(options, tasks, frozenset({live.pid}), ALL)
        check_newcomers(options, tasks, frozenset(task.pid for task in tasks), ALL)
    finally:
        live.end()


def test_a_task_that_is_gone_is_passed_over(tmp_path):
    live = Live(tmp_path, ["sh", "-c", f"touch {tmp_path}/ready; while :; do sleep 0.001; done"])
    try:
        live.await_file("ready")
        options = DumpOptions(pid=live.pid, images_dir=tmp_path / "images")
        for _ in range(200):
            preflight(options, ALL)
    finally:
        live.end()


SLOW_SERVER = """
import os, signal, socket, sys
server = socket.socket(socket.AF_UNIX); server.bind("s"); server.listen()
signal.signal(signal.SIGUSR1, lambda *_: None)
open("ready", "w").close()
signal.pause()
kept = []
while True:
    kept.append(server.accept())
"""


def test_a_client_that_is_accepted_meanwhile_is_waited_for(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(f"import os; os.chdir({str(tmp_path)!r}){SLOW_SERVER}")
    live = Live(tmp_path, ["/usr/bin/python3", script])
    told = []

    def note(step):
        if step.phase == "again" and not told:
            told.append(step.text)
            client.close()
            os.kill(live.pid, signal.SIGUSR1)

    try:
        live.await_ready()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "s"))
        options = DumpOptions(
            pid=live.pid, images_dir=tmp_path / "images", after=After.CONTINUE,
            tcp=TcpPolicy.CLOSE,
        )  # fmt: skip
        (report,) = api.dump([options], progress=note)
        assert "waits to be accepted" in told[0]
        assert report.tasks == 1
        live.unharmed()
    finally:
        live.end()


LARGE = "import time; memory = bytearray(256 << 20); open('ready', 'w'); time.sleep(1000)"


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "giving back its memory"])
def test_a_parent_hears_of_a_task_that_was_killed_while_it_stood(tmp_path, is_gone):
    script = f'cd {tmp_path}; /usr/bin/python3 -c "{LARGE}"; touch ended; wait'
    live = Live(tmp_path, ["sh", "-c", script])
    try:
        live.await_file("ready")
        (pid,) = set(tree(live.pid)) - {live.pid}
        tids = ptrace.stop_process(pid)
        os.kill(pid, signal.SIGKILL)
        while is_gone and proc.parse_stat(proc.read_text(pid, "stat")).state != "Z":
            time.sleep(0.01)
        assert not (tmp_path / "ended").exists()
        ptrace.release_all(tids)
        live.await_file("ended")
    finally:
        live.end()

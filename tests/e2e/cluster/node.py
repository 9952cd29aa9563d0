# SPDX-License-Identifier: Apache-2.0
"""A node: a Debian root in pid, network, mount, UTS, IPC and cgroup namespaces of its own.

The node is its pid 1 (inside.py): killed, it takes every process of the node with it at once, which
is what a power cut does; started again, the node has its disk and nothing else, as after a reboot.
Everything of a node is also in control groups named after it, and that is how `down` finds what a
killed `up` has left: a child joins them before it does anything else.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.image.process import BuildError
from tests.e2e.cluster import cgroups

INSIDE = Path(__file__).with_name("inside.py")
START_TIMEOUT_S = 30.0
ENVIRONMENT = {
    "PATH": "/cluster/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}
# $1 is the number of groups that follow it, then comes the command.
JOIN = """
n=$1; shift
while [ $n -gt 0 ]; do echo $$ > "$1/cgroup.procs" || exit 125; shift; n=$((n-1)); done
exec "$@"
"""
_left_running: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node and where its things are.

    Attributes:
        name: its host name and its name in Kubernetes.
        group: name of its control groups.
        state: directory of its disk.
        root: the Debian root that it runs.
        etc: directory that becomes its /etc/kubernetes.
        shared: directory that all nodes see as /cluster/shared.
        programs: directory of the compiled programs.
        pidfile: where the pid of its pid 1 is written.
    """

    name: str
    group: str
    state: Path
    root: Path
    etc: Path
    shared: Path
    programs: Path
    pidfile: Path

    def pid(self) -> int | None:
        """The machine's pid of the node's pid 1, if the node runs."""
        try:
            pid, started = self.pidfile.read_text().split()
            return int(pid) if _start_time(int(pid)) == started else None
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None

    def start(self) -> int:
        """Starts the node and returns the pid of its pid 1.

        Raises:
            BuildError: its pid 1 did not get ready.
        """
        cgroups.destroy(self.group)
        groups = cgroups.create(self.group)
        outer = subprocess.Popen(
            [
                *_join(groups),
                "unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup", "--fork",
                "--kill-child", "--propagation", "private",
                sys.executable, "-S", "-E", str(INSIDE), self._description(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._await_ready(outer)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        pid = int(children[0])
        cgroups.hand_out(self.group, outer.pid, pid)
        self.pidfile.parent.mkdir(parents=True, exist_ok=True)
        self.pidfile.write_text(f"{pid} {_start_time(pid)}\n")
        _leave_running(outer)
        return pid

    def kill(self) -> None:
        """Cuts the power: every process of the node is gone when this returns."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        cgroups.destroy(self.group)
        self.pidfile.unlink(missing_ok=True)
        _collect()

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs another on the node, in all its namespaces and groups."""
        pid = self._running()
        return [
            *_join(cgroups.joined(self.group)),
            "nsenter", "-t", str(pid), "-m", "-n", "-u", "-i", "-p", "-C", "-r", "-w", "--", *argv,
        ]  # fmt: skip

    def enter_network(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs a program of the machine in the node's network only."""
        return ["nsenter", "-t", str(self._running()), "-n", "--", *argv]

    def daemon(self, unit: str, argv: Sequence[str], log: Path) -> None:
        """Starts a program on the node that goes on when this one has ended."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.enter(["setsid", *argv]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        if process.poll() is not None:
            raise BuildError(f"{unit} on node {self.name} ended at once", "", f"see {log}")
        _leave_running(process)

    def _running(self) -> int:
        pid = self.pid()
        if pid is None:
            raise BuildError(
                f"node {self.name} is not running", "", f"start it: cluster start-node {self.name}"
            )
        return pid

    def _description(self) -> str:
        seen = [
            [str(h.where.relative_to(cgroups.TOP)), h.kind, h.options]
            for h in cgroups.hierarchies()
        ]
        return json.dumps(
            {
                "name": self.name,
                "state": str(self.state),
                "root": str(self.root),
                "etc": str(self.etc),
                "shared": str(self.shared),
                "programs": str(self.programs),
                "hierarchies": json.dumps(seen),
            }
        )

    def _await_ready(self, outer: subprocess.Popen[bytes]) -> None:
        if outer.stdout is None:
            raise AssertionError
        with outer.stdout as output:
            said = b""
            while not said.endswith(b"ready\n"):
                readable, _, _ = select.select([output], [], [], START_TIMEOUT_S)
                chunk = os.read(output.fileno(), 65536) if readable else b""
                if not chunk:
                    cgroups.destroy(self.group)
                    outer.wait()
                    raise BuildError(f"node {self.name} did not start", said.decode().strip())
                said += chunk


def _join(groups: Sequence[Path]) -> list[str]:
    return ["sh", "-c", JOIN, "sh", str(len(groups)), *(str(group) for group in groups)]


def _start_time(pid: int) -> str:
    """When the process started, in ticks since boot: tells it from a later one of the same pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError as gone:
        raise ProcessLookupError(pid) from gone
    return stat.rpartition(")")[2].split()[19]


def _leave_running(process: subprocess.Popen[bytes]) -> None:
    """Remembers a child that outlives this program, so that it leaves no zombie while we live."""
    _left_running.append(process)


def _collect() -> None:
    _left_running[:] = [process for process in _left_running if process.poll() is None]

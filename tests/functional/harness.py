# SPDX-License-Identifier: Apache-2.0
"""One live workload: started, dumped, ended, restored with its pids, asked to check itself.

A workload gets a folder. It writes `ready` when all is set up, waits for `go`, checks
everything, and writes `result`: `ok`, or what was wrong. Whatever it complains of before `go`
(a blocked call that has returned) it writes into `result` as well.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.functional.describe import describe, differences, stopped, tree
from torpor.engine import api
from torpor.engine.criu.asked import dump_options, restore_options
from torpor.engine.criu.parse import parse
from torpor.engine.errors import Error
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.inventory import read_inventory
from torpor.engine.kernel import nftables
from torpor.engine.options import After, DumpReport, RestoreReport

PATIENCE_S = 30.0
SETTLE_S = 0.05


class Live:
    """A workload and what has become of it."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str | Path],
        *,
        environment: dict[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        self.folder = folder
        self.report: DumpReport | None = None
        with (folder / "log").open("wb") as log:
            if user is not None:
                os.fchown(log.fileno(), user, user)
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=environment or {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
            )
        process.returncode = 0  # it is waited for by `reap`
        self.pid = process.pid
        self.pids = {self.pid}
        self.at_rest: dict[int, str] = {}

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def await_ready(self) -> None:
        """Set up, and every task of it at rest."""
        self.await_file("ready")
        self.settle()

    def settle(self) -> None:
        """Until two looks at the tree tell the same."""
        last, deadline = describe(self.pid), time.monotonic() + PATIENCE_S
        while True:
            time.sleep(SETTLE_S)
            now = describe(self.pid)
            if now == last:
                break
            assert time.monotonic() < deadline, f"never at rest: {differences(last, now)}"
            last = now
        self.mark()

    def mark(self) -> None:
        """Remember its pids, and which of its tasks are stopped by a signal."""
        self.pids |= set(tree(self.pid))
        self.at_rest = stopped(self.pid)

    def look(self, changing: Sequence[str] = ()) -> dict[str, str]:
        """What the kernel tells of it, but for keys like ``changing`` (regular expressions)."""
        said = describe(self.pid)
        return {k: v for k, v in said.items() if not any(re.search(p, k) for p in changing)}

    def dump(
        self,
        name: str = "images",
        after: After = After.STOP,
        words: Sequence[str] = (),
        **options: object,
    ) -> Path:
        """Dump; with `After.STOP` no task of it is left on return.

        ``words`` are options of CRIU's command line.
        """
        images = self.folder / name
        images.mkdir()
        self.pids |= set(tree(self.pid))
        line = parse(["dump", "-t", str(self.pid), "-D", str(images), *words])
        (self.report,) = api.dump([replace(dump_options(line), after=after, **options)])
        if after is After.STOP:
            self.reap(self.pids)
        else:
            self.unharmed()
        return images

    def restore(
        self, name: str = "images", words: Sequence[str] = (), **options: object
    ) -> RestoreReport:
        """From the directory; its root has its old pid."""
        line = parse(["restore", "-D", str(self.folder / name), *words])
        report = api.restore(replace(restore_options(line), **options))
        assert report.pid == self.pid
        self.unharmed()
        return report

    def settle_lazily(self) -> None:
        """Until all of its memory is there."""
        deadline = time.monotonic() + PATIENCE_S
        while any(_waits_for_pages(pid) for pid in tree(self.pid)):
            assert time.monotonic() < deadline, "its memory is never filled"
            time.sleep(SETTLE_S)

    def unharmed(self) -> None:
        """None but those that were before are stopped, none is traced, none has complained."""
        deadline = time.monotonic() + 2
        while stopped(self.pid) != self.at_rest and time.monotonic() < deadline:
            time.sleep(0.005)  # a stop that was asked for takes its time
        now = stopped(self.pid)
        assert now == self.at_rest, f"stopped or traced: {now}, before {self.at_rest}"
        result = self.folder / "result"
        assert not result.exists(), result.read_text()

    def same_as(self, before: dict[str, str], changing: Sequence[str] = ()) -> None:
        """The kernel tells the same of it as before, but for keys like ``changing``."""
        deadline = time.monotonic() + 2
        while (told := differences(before, self.look(changing))) and time.monotonic() < deadline:
            time.sleep(SETTLE_S)
        assert not told, told

    def verdict(self) -> str:
        """What it says of itself."""
        (self.folder / "go").touch()
        return self.await_file("result")

    def unlock(self) -> None:
        """Delete the network locks of dumps that were not restored."""
        for path in self.folder.glob("*/inventory.img"):
            with (
                suppress(Error),
                ImageDirectory.open(path.parent, verify=Verify.WITHOUT_PAGES) as one,
            ):
                nftables.unlock(nftables.table_name(read_inventory(one).dump_criu_run_id))

    def end(self) -> None:
        """Kill what is left of it."""
        self.unlock()
        pids = self.pids | set(tree(self.pid))
        for orphan in _orphans_of(self.pid):
            pids |= set(tree(orphan))
        self.reap(pids, kill=True)

    def reap(self, pids: set[int], *, kill: bool = False) -> None:
        """Wait until none of the pids is taken; orphans are ours (child subreaper).

        A list of children may lack some while others end (proc_pid_task(5)), so who is to be
        killed is looked for each time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for pid in pids | _orphans_of(self.pid):
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            left = (pids | _orphans_of(self.pid)) & _ours()
            if not left:
                return
            for pid in left if kill else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            states = {pid: _state(pid) for pid in left}
            assert time.monotonic() < deadline, f"still there: {states}"
            time.sleep(0.002)

    def await_file(self, name: str) -> str:
        """The text of a file that the workload writes."""
        path, deadline = self.folder / name, time.monotonic() + PATIENCE_S
        while not path.exists():
            state = _state(self.pid)
            if state in "ZX" and not path.exists():
                raise AssertionError(f"it has ended before {name}: {self.log()}")
            if name != "result" and (self.folder / "result").exists():
                raise AssertionError((self.folder / "result").read_text())
            assert time.monotonic() < deadline, f"no {name}: {self.log()}"
            time.sleep(0.005)
        return path.read_text()


def _ours() -> set[int]:
    """What descends from us: a pid that was a workload's may be somebody else's by now."""
    return set(tree(os.getpid()))


def _orphans_of(session: int) -> set[int]:
    """Children of ours that hold a session's number: it cannot be had again while they do."""
    found = set()
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            if int(stat[3]) == session:
                found.add(int(pid))
    return found


def _state(pid: int) -> str:
    """Letter of stat; that of a leader that has ended before its other threads is R."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "R" if int(words[17]) > 1 and words[0] == b"Z" else words[0].decode()
    except OSError:
        return "X"


def _waits_for_pages(pid: int) -> bool:
    """Whether pages of a task come later (`um` in smaps)."""
    smaps = Path(f"/proc/{pid}/smaps").read_text(errors="replace")
    return any(" um" in line for line in smaps.splitlines() if line.startswith("VmFlags:"))

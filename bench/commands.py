# SPDX-License-Identifier: Apache-2.0
"""`make bench`, second part: whole commands on a sleeping task, beside Debian's newest criu.

    commands.py [--rounds N] [--json FILE]

Three ways in turn: Debian's `criu`, the installed `build/bin/criu` (`make engine`), and requests
to a `criu service` of ours; options and images (on tmpfs) are the same. The time is that of a
caller, from the start of the command, or the connect, to its end. Processor time is beside it:
with other jobs around, or few processors, it says more. Medians; the first round is dropped.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from tests.compat.criu_root import criu_root  # noqa: E402
from torpor.engine.images.proto import rpc_pb2 as pb  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36
OURS = ROOT / "build" / "bin" / "criu"
MEASURES = ("--version", "check", "dump", "restore")
WAYS = ("criu", "torpor", "service")
Times = dict[tuple[str, str], list[tuple[float, float]]]
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


class Command:
    """A program that is started for each thing to do."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __call__(self, *words: str) -> tuple[float, float]:
        """Run it; seconds until its end, and of the processor."""
        used, begin = children_s(), time.perf_counter()
        subprocess.run([*self.words, *words], check=False, **QUIET)
        return time.perf_counter() - begin, children_s() - used

    def dump(self, task: int, images: Path) -> tuple[float, float]:
        """Dump and stop."""
        return self("dump", "-t", str(task), *self._common(images, "dump.log"))

    def restore(self, images: Path) -> tuple[float, float]:
        """Restore, detached."""
        return self("restore", "-d", *self._common(images, "restore.log"))

    def _common(self, images: Path, log: str) -> list[str]:
        return ["-D", str(images), "-v4", "-o", log, "--network-lock", "skip"]


class Service:
    """Our `criu service`, which is there already."""

    def __init__(self, place: Path) -> None:
        self.path = place / "socket"
        ready, told = os.pipe()
        self.process = subprocess.Popen(
            [OURS, "service", "--address", self.path, "--status-fd", str(told)],
            pass_fds=(told,), cwd=place, **QUIET,
        )  # fmt: skip
        os.close(told)
        os.read(ready, 1)
        os.close(ready)

    def dump(self, task: int, images: Path) -> tuple[float, float]:
        """Dump and stop."""
        request = self._request(pb.DUMP, images, "dump.log")
        request.opts.pid = task
        return self._ask(request)

    def restore(self, images: Path) -> tuple[float, float]:
        """Restore."""
        return self._ask(self._request(pb.RESTORE, images, "restore.log"))

    def end(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait()

    def _request(self, kind: "pb.criu_req_type", images: Path, log: str) -> "pb.criu_req":
        request = pb.criu_req(type=kind)
        request.opts.images_dir_fd = os.open(images, os.O_RDONLY)
        request.opts.network_lock, request.opts.log_level = pb.SKIP, 4
        request.opts.log_file = log
        return request

    def _ask(self, request: "pb.criu_req") -> tuple[float, float]:
        begin = time.perf_counter()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.connect(str(self.path))
            caller.sendall(request.SerializeToString())
            answer = pb.criu_resp.FromString(caller.recv(1 << 16))
            took = time.perf_counter() - begin
        os.close(request.opts.images_dir_fd)
        assert answer.success, answer.cr_errmsg
        return took, float("nan")


def children_s() -> float:
    """Processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="torpor-bench-") as scratch:
        service = Service(Path(scratch))
        try:
            times = measure(Path(scratch), service, chosen.rounds)
        finally:
            service.end()
    rows = table(times)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


def measure(scratch: Path, service: Service, rounds: int) -> Times:
    """All ways in turn, so that what else the machine does is the same for each."""
    theirs, ours = Command(criu_root().criu()), Command([str(OURS)])
    times: Times = {}
    for number in range(rounds):
        for way, engine in zip(WAYS, (theirs, ours, service), strict=True):
            found = round_trip(scratch / "images", engine.dump, engine.restore)
            if isinstance(engine, Command):
                found |= {"--version": engine("--version"), "check": engine("check")}
            if number:
                for name, took in found.items():
                    times.setdefault((name, way), []).append(took)
    return times


def round_trip(
    images: Path,
    dump: Callable[[int, Path], tuple[float, float]],
    restore: Callable[[Path], tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    """A sleeper is dumped, restored and ended."""
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir()
    task = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True, cwd="/", **QUIET)
    time.sleep(0.05)
    dumped = dump(task.pid, images)
    task.wait()
    restored = restore(images)
    os.kill(task.pid, signal.SIGKILL)
    while Path(f"/proc/{task.pid}").exists():  # it is ours once its restorer has ended
        with contextlib.suppress(ChildProcessError):
            os.waitpid(task.pid, os.WNOHANG)
        time.sleep(0.005)
    return {"dump": dumped, "restore": restored}


def table(times: Times) -> list[dict[str, object]]:
    """Print the medians in milliseconds, and the ratios to Debian's criu."""
    rows: list[dict[str, object]] = []
    print(f"{'command':10} {'way':8} {'ms':>8} {'ratio':>6} {'cpu ms':>8} {'ratio':>6}")
    for name in MEASURES:
        base = medians(times[name, "criu"])
        for way in WAYS:
            if (name, way) in times:
                wall, used = medians(times[name, way])
                ratios = (wall / base[0], used / base[1])
                print(
                    f"{name:10} {way:8} {wall:8.1f} {ratios[0]:6.2f} {used:8.1f} {ratios[1]:6.2f}"
                )
                rows.append({"case": name, "way": way, "ms": wall, "ratio": ratios[0]})
    return rows


def medians(found: list[tuple[float, float]]) -> tuple[float, float]:
    """Of both times, in milliseconds."""
    return (
        statistics.median(wall for wall, _ in found) * 1e3,
        statistics.median(used for _, used in found) * 1e3,
    )


if __name__ == "__main__":
    main()

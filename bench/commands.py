# SPDX-License-Identifier: Apache-2.0
"""Whole commands on a sleeping task.

Three ways in turn: Debian's `criu`, the installed `build/bin/criu` (`make engine`), and requests
to a `criu service` of ours; options and images (on tmpfs) are the same. The time is that of a
caller, from the start of the command, or the connect, to its end. Processor time is beside it:
with other jobs around, or few processors, it says more.
"""

import contextlib
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from bench.common import QUIET, ROOT, Floor, Row
from tests.compat.criu_root import criu_root
from torpor.engine.images.proto import rpc_pb2 as pb

OURS = ROOT / "build" / "bin" / "criu"
MEASURES = ("--version", "check", "dump", "restore")
WAYS = ("criu", "torpor", "service")
NEEDED = {
    "dump": ("torpor.engine.criu.entry", "torpor.engine.criu.dump", "torpor.engine.dump.pipeline"),
    "restore": (
        "torpor.engine.criu.entry", "torpor.engine.criu.restore", "torpor.engine.restore.launch",
    ),
}  # fmt: skip
STARTER = """
import gc, sys
sys.path.append({site!r})
from torpor.engine import start
gc.set_threshold(start.OBJECTS_BEFORE_COLLECTION)
assert start.use_bundle(start.__file__.rpartition("/")[0] + "/" + start.BUNDLE)
import {modules}
start.leave(0)
"""
Times = dict[tuple[str, str], list[tuple[float, float]]]
GOALS = {("dump", "torpor"): 2.5, ("restore", "torpor"): 2.5, ("dump", "service"): 1.0,
         ("restore", "service"): 1.0}  # fmt: skip


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


def rows(scratch: Path, rounds: int) -> Iterator[Row]:
    """All commands; those that a service does as well by it."""
    service = Service(scratch)
    try:
        times = measure(scratch, service, rounds)
    finally:
        service.end()
    floors = {
        name: Floor(
            value=medians(started(needed) for _ in range(rounds))[0],
            what=f"its start with all imported that it takes; Python's own {python_ms:.3g}",
        )
        for python_ms in [medians(started(()) for _ in range(rounds))[0]]
        for name, needed in NEEDED.items()
    }
    for name in MEASURES:
        for way in WAYS[1:]:
            if (name, way) in times:
                yield row(times, name, way, floors.get(name))


def measure(scratch: Path, service: Service, rounds: int) -> Times:
    """All ways in turn, so that what else the machine does is the same for each."""
    theirs, ours = Command(criu_root().criu()), Command([str(OURS)])
    times: Times = {}
    for number in range(rounds + 1):
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


def row(times: Times, name: str, way: str, floor: Floor | None) -> Row:
    """One command, one way, beside Debian's."""
    (wall, used), (base, base_used) = medians(times[name, way]), medians(times[name, "criu"])
    processor = "" if way == "service" else f", processor {used:.0f}/{base_used:.0f} ms"
    return Row(case=f"criu {name}", measure=f"{way}{processor}", ours=wall, criu=base,
               score=wall / base, goal=GOALS.get((name, way)), floor=floor,
               samples={one: [both[0] * 1e3 for both in times[name, one]]
                        for one in (way, "criu")})  # fmt: skip


def started(modules: Sequence[str]) -> tuple[float, float]:
    """Python as the launcher starts it, with so much imported, and its end."""
    if not modules:
        return Command([sys.executable, "-I", "-S", "-c"])("")
    interpreter, *_ = OURS.read_text(encoding="utf-8").split("\n", 1)
    code = STARTER.format(
        site=sysconfig.get_path("purelib", vars={"base": str(ROOT / "build/engine")}),
        modules=", ".join(modules),
    )
    return Command([*interpreter.removeprefix("#!").split(), "-c", code])()


def medians(times: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Of both times, in milliseconds."""
    found = list(times)
    return (
        statistics.median(wall for wall, _ in found) * 1e3,
        statistics.median(used for _, used in found) * 1e3,
    )

# SPDX-License-Identifier: Apache-2.0
"""Runs the rings of tests and says in one line what came of them.

    run_tests.py all|unit|functional|faults|compat|programs|e2e [PYTEST ARGUMENT ...]

`all` runs every ring; with TORPOR_E2E=0 not the one of the cluster, which takes as long again.
Rings of one machine then run in two lanes beside each other, and a ring's output is shown when
it has ended; TORPOR_LANES=1 runs one ring after another, with its output as it comes.
A skip must give a reason that is expected here (EXPECTED_SKIPS), or it counts as a failure.
A few failures in a ring of live tasks (TRIED_AGAIN) are tried once more, and told of.
The last line is `N passed, N failed, N skipped`.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "tests"
RINGS = {
    "unit": "not root and not functional and not faults and not compat and not e2e",
    "functional": "(functional or root) and not faults and not compat and not programs and not e2e",
    "faults": "faults and not e2e",
    "compat": "compat and not e2e",
    "programs": "programs",
    "e2e": "e2e",
}
PACKAGES = {
    "unit": (),
    "functional": (
        "redis-server",
        "nginx-light",
        "busybox-static",
        "strace",
        "iproute2",
        "procps",
        "util-linux",
    ),
    "faults": ("util-linux",),
    "compat": ("procps",),
    "programs": (
        "redis-server",
        "redis-tools",
        "memcached",
        "nginx-light",
        "apache2",
        "haproxy",
        "mosquitto",
        "mosquitto-clients",
        "postgresql",
        "mariadb-server",
        "mariadb-client",
        "nodejs",
        "ruby",
        "perl",
        "php-cli",
        "erlang-base",
        "default-jdk-headless",
        "python3-numpy",
        "tmux",
        "vim-tiny",
        "gcc",
        "make",
        "sox",
        "qemu-system-x86",
        "ffmpeg",
        "rabbitmq-server",
        "amqp-tools",
        "dbus",
        "xvfb",
        "xterm",
        "chromium",
    ),
    "e2e": (),
}
LANES = (("unit", "functional", "programs"), ("faults", "compat"))
"""Rings that may run beside each other: lanes that take about the same time, of one core each."""
TRIED_AGAIN = ("functional", "faults", "compat", "programs", "e2e")
TOLD_EVERY_S = 60
FEW = 3
"""So many tests of live tasks may need a second try: pids and ports are also taken by others."""
EXPECTED_SKIPS = (
    r"no \w+ freezer that we may write",  # a machine has cgroup v1 or v2, seldom both
    r"this kernel has no guard pages \(Linux 6\.13\)",
    r"this kernel cannot make one: .*",
    r"needs a Go compiler",
    r"this machine lacks .*",  # a workload of the catalogue tells what
    r"no helm: it is made by .*",  # the cluster's ring makes it, the first time
)
WITHOUT_ROOT = (r"needs root.*", r".* needs root", r"this kernel lets only root attach filters")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a ring gave."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    odd_skips: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Run the rings that were asked for."""
    ring = sys.argv[1] if len(sys.argv) > 1 else "all"
    wanted = chosen(ring)
    for name in wanted:
        prepare(name)
    total = Outcome()
    broken = False
    for outcome, status in run_all(wanted, sys.argv[2:]):
        total.passed += outcome.passed
        total.failed += outcome.failed
        total.skipped += outcome.skipped
        broken |= status not in (0, 5)
        total.odd_skips += outcome.odd_skips
    for text in total.odd_skips:
        print(f"unexpected skip: {text}")
    total.failed += len(total.odd_skips)
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed or broken or not total.passed else 0


def run_all(wanted: Sequence[str], arguments: list[str]) -> Iterator[tuple[Outcome, int]]:
    """What each ring gave, as told by `run`."""
    lanes = [[name for name in wanted if name in lane] for lane in LANES]
    if os.environ.get("TORPOR_LANES") == "1" or not all(lanes):
        for name in wanted:
            yield run(name, arguments)
        return
    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [
            pool.submit(lambda names: [run(name, arguments, aside=True) for name in names], lane)
            for lane in lanes
        ]
        for lane in running:
            yield from lane.result()
    for name in wanted:
        if not any(name in lane for lane in LANES):
            yield run(name, arguments)


def chosen(ring: str) -> list[str]:
    """Names of the rings to run."""
    if ring != "all":
        if ring not in RINGS:
            raise SystemExit(f"no such ring: {ring} (all, {', '.join(RINGS)})")
        return [ring]
    with_cluster = os.environ.get("TORPOR_E2E") != "0"
    return [name for name in RINGS if name != "e2e" or with_cluster]


def run(name: str, arguments: list[str], *, aside: bool = False) -> tuple[Outcome, int]:
    """One ring by pytest; a few that fail of live tasks are tried once more, and told of.

    ``aside``: what pytest prints is shown at once when the ring has ended.
    """
    begin = time.monotonic()
    print(f"ring {name}: begins", flush=True)
    outcome, status, text = _pytest(name, name, arguments, aside=aside)
    if name in TRIED_AGAIN and status == 1 and 0 < outcome.failed <= FEW:
        failed = [*arguments, "--lf", "--lfnf=none"]
        again, repeated, more = _pytest(name, f"{name}-again", failed, aside=aside)
        text += more
        if again.passed or again.failed:  # else none was found: the first run counts
            for test in outcome.failures:
                text += f"ring {name}: failed, tried again: {test}\n"
            text += f"ring {name}: {again.passed} of them passed then: find out why\n"
            outcome.passed += again.passed
            outcome.failed, status = again.failed, repeated
    print(
        f"{text}ring {name}: {outcome.passed} passed, {outcome.failed} failed, "
        f"{outcome.skipped} skipped in {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return outcome, status


def _pytest(
    ring: str, report_name: str, arguments: list[str], *, aside: bool
) -> tuple[Outcome, int, str]:
    BUILD.mkdir(parents=True, exist_ok=True)
    report = BUILD / f"{report_name}.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        RINGS[ring],
        f"--junitxml={report}",
        "--timeout=900",
        "-o",
        f"cache_dir={BUILD / 'cache' / ring}",
        *arguments,
    ]
    if not aside:
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        return read(report), status, ""
    log = BUILD / f"{report_name}.log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as pytest,
    ):
        while True:
            try:
                status = pytest.wait(TOLD_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                print(f"ring {ring}: {progress(log.read_text(errors='replace'))}", flush=True)
    return read(report), status, log.read_text(errors="replace")


def progress(text: str) -> str:
    """How far pytest is, by what it has printed."""
    done = re.findall(r"^[.sFExX]+ *\[ *(\d+)%\]$", text, re.MULTILINE)
    failed = sum(
        line.count("F") + line.count("E") for line in re.findall(r"^[.sFExX]+", text, re.M)
    )
    return f"{done[-1] if done else 0} % done, {failed} failed"


def prepare(name: str) -> None:
    """Install the Debian packages of a ring; no service of theirs is started."""
    if os.getuid() != 0 or not PACKAGES[name]:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        subprocess.run([ROOT / "tools" / "system_packages.sh", *PACKAGES[name]], check=True)
    finally:
        if ours:
            policy.unlink()


def read(report: Path) -> Outcome:
    """Counts of a junit report, and skips whose reason nobody expects."""
    if not report.exists():
        return Outcome(failed=1)
    outcome = Outcome()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
            outcome.failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif skip is not None:
            outcome.skipped += 1
            reason = skip.get("message") or ""
            if not expected(reason):
                outcome.odd_skips.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
        else:
            outcome.passed += 1
    return outcome


def expected(reason: str) -> bool:
    """Whether a test may be skipped for this reason."""
    allowed = EXPECTED_SKIPS + (() if os.getuid() == 0 else WITHOUT_ROOT)
    return any(re.fullmatch(pattern, reason) for pattern in allowed)


if __name__ == "__main__":
    sys.exit(main())

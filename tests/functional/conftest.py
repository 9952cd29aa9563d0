# SPDX-License-Identifier: Apache-2.0
"""Fixtures of live workloads: C programs built once, workloads ended whatever happens."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.harness import Live

WORKLOADS = Path(__file__).parent / "workloads"
BUILT = Path(__file__).parents[2] / "build" / "tests" / "workloads"
FLAGS = ("-O1", "-g0", "-Wall", "-Werror", "-pthread")


def program(name: str) -> list[str]:
    """How a workload is started; C is compiled when its text is new."""
    script = WORKLOADS / f"{name}.py"
    if script.exists():
        return [sys._base_executable, str(script)]
    source = WORKLOADS / f"{name}.c"
    headers = b"".join(path.read_bytes() for path in sorted(WORKLOADS.glob("*.h")))
    key = hashlib.sha256(source.read_bytes() + headers + repr(FLAGS).encode())
    binary = BUILT / f"{name}-{key.hexdigest()[:12]}"
    if not binary.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        part = binary.with_suffix(".part")
        subprocess.run(["gcc", *FLAGS, "-o", part, source, "-lrt"], check=True)
        part.rename(binary)
    return [str(binary)]


@pytest.fixture
def start(tmp_path):
    """Start a workload: name, then its arguments."""
    begun = []

    def begin(name, *arguments, **options):
        tmp_path.chmod(0o777)
        live = Live(tmp_path, [*program(name), str(tmp_path), *arguments], **options)
        begun.append(live)
        return live

    yield begin
    for live in begun:
        live.end()

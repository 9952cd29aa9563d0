# SPDX-License-Identifier: Apache-2.0
"""Arguments, environment, name, exe, umask, cwd: argv with odd bytes, a changed name and title."""

import ctypes
import os
import sys
from pathlib import Path

from files_base import workload

LIBC = ctypes.CDLL(None, use_errno=True)


def say():
    return [Path("/proc/self", name).read_bytes() for name in ("cmdline", "environ", "comm")] + [
        os.readlink("/proc/self/exe"), os.getcwd(), os.umask(0o137), os.umask(0o137),
    ]  # fmt: skip


def body(place):
    (place / "lower").mkdir()
    os.chdir(place / "lower")
    LIBC.prctl(15, b"n\xffame (odd) ", 0, 0, 0)
    os.umask(0o137)
    os.environ["ADDED"] = "later"
    before = say()
    yield
    assert say() == before, f"{say()} was {before}"
    assert os.environ["ADDED"] == "later"
    assert sys.argv[1] == str(place)


if __name__ == "__main__":
    workload(body)

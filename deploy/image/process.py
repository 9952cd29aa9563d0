# SPDX-License-Identifier: Apache-2.0
"""Runs programs: checked, and where they build things, so that they end with their caller."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

# The program's whole tree of processes and mounts ends when the caller does, kill -9 included.
CONTAINED = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
OUTPUT_KEPT_LINES = 15


class BuildError(Exception):
    """Something could not be built or run.

    Args:
        what: one clause that says what failed.
        cause: what was seen, such as the last lines of a program's output.
        remedy: what the user can do, in the imperative.
    """

    def __init__(self, what: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        """The parts that are there, a line each."""
        parts = [self.what, self.cause, self.remedy and f"remedy: {self.remedy}"]
        return "\n  ".join(part for part in parts if part)


def run(
    argv: Sequence[str | Path],
    *,
    what: str = "",
    input_text: str | None = None,
    stdin_file: BinaryIO | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
) -> str:
    """Runs a program to its end and returns what it wrote to standard output.

    Raises:
        BuildError: it ended with another status than 0, or not in time.
    """
    words = [str(word) for word in argv]
    name = what or " ".join(words[:3])
    try:
        done = subprocess.run(
            words,
            check=False,
            input=input_text,
            stdin=None if input_text is not None else stdin_file or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            cwd=cwd,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as late:
        raise BuildError(f"{name}: no end after {late.timeout:.0f} s") from late
    except FileNotFoundError as missing:
        raise BuildError(f"{name}: {missing.filename} is not there") from missing
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()[-OUTPUT_KEPT_LINES:]
        raise BuildError(f"{name} failed with status {done.returncode}", "\n  ".join(output))
    return done.stdout


def install_missing(programs: Mapping[str, str], files: Mapping[str, str]) -> list[str]:
    """Installs the Debian packages of those programs and files that are not there.

    Args:
        programs: program on PATH to the package that has it.
        files: path to the package that has it.

    Returns:
        The packages that were installed.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    wanted = {pkg for name, pkg in programs.items() if not shutil.which(name, path=path)}
    wanted |= {package for name, package in files.items() if not Path(name).exists()}
    if not wanted:
        return []
    packages = sorted(wanted)
    if not shutil.which("apt-get"):
        raise BuildError(
            f"missing here: {', '.join(packages)}",
            "this machine has no apt-get",
            "install what these Debian packages hold and start again",
        )
    require_root("installing packages")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    run(["apt-get", "update", "-qq"], what="apt-get update", env=env)
    run(install, what=f"installing {' '.join(packages)}", env=env)
    return packages


def require_root(what: str) -> None:
    """Raises BuildError unless the caller is root."""
    if os.geteuid() != 0:
        raise BuildError(f"{what} needs root", "", f"run it as root: sudo {' '.join(sys.argv)}")

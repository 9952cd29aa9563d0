# SPDX-License-Identifier: Apache-2.0
"""`make lint`: formatters, linters, types, layers, and that generated files are fresh.

    lint.py [CHECK ...]

Every check is run and told in one line; the output of those that fail follows.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LARGEST_BYTES = 200_000
HEADED = (".py", ".c", ".h", ".S", ".lds", ".sh")
TRACES = re.compile("|".join(re.escape(f"{place}/") for place in (ROOT, Path.home() / ".pyenv")))


def main() -> int:
    """Run the checks."""
    chosen = sys.argv[1:] or list(CHECKS)
    failed = []
    for name in chosen:
        problem = CHECKS[name]()
        print(f"{name}: {'failed' if problem else 'ok'}", flush=True)
        if problem:
            failed.append(name)
            print(problem)
    return 1 if failed else 0


def command(*words: str, **variables: str) -> Callable[[], str]:
    """A check that runs a program."""

    def check() -> str:
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=ROOT,
            text=True,
            check=False,
            capture_output=True,
            env={**os.environ, **variables},
        )
        return done.stdout + done.stderr if done.returncode else ""

    return check


def tracked() -> list[Path]:
    """Files in git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def headers() -> str:
    """Sources without a licence line."""
    bare = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in HEADED
        and path.exists()
        and "SPDX-License-Identifier"
        not in "\n".join(path.read_text(errors="replace").splitlines()[:3])
    ]
    return "\n".join(f"{name}: no SPDX line" for name in bare)


def sizes() -> str:
    """Files that are too large for a repository of sources."""
    return "\n".join(
        f"{path.relative_to(ROOT)}: over {LARGEST_BYTES} bytes"
        for path in tracked()
        if path.exists() and path.stat().st_size > LARGEST_BYTES
    )


def traces() -> str:
    """Paths of one machine."""
    found = []
    for path in tracked():
        if path.name == Path(__file__).name or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if TRACES.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    return "\n".join(found)


CHECKS: dict[str, Callable[[], str]] = {
    "format": command("ruff", "format", "--check", "-q", "."),
    "ruff": command("ruff", "check", "-q", "--output-format", "concise", "."),
    "types": command("mypy"),
    "layers": command("lint-imports", PYTHONPATH=""),
    "docs": command("python", "tools/docs.py", "--check"),
    "headers": headers,
    "sizes": sizes,
    "traces": traces,
}

if __name__ == "__main__":
    sys.exit(main())

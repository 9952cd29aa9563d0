# SPDX-License-Identifier: Apache-2.0
"""Install the built engine: its environment to PREFIX/lib/torpor, its commands to PREFIX/bin.

    install.py VENV --prefix PREFIX [--destdir DIR] [--criu]

The name `criu` is only taken when asked for, and never from a program that is there already.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from tools.launchers import MARK, NAMES, write  # noqa: E402

NOT_NEEDED = ("pip", "pip-*", "setuptools", "setuptools-*", "__pycache__")


def main() -> int:
    """Install; 1 when something else is in the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    parser.add_argument("--destdir", default="")
    parser.add_argument("--criu", action="store_true")
    options = parser.parse_args()
    return install(options.venv, options.prefix, options.destdir, with_criu=options.criu)


def install(venv: Path, prefix: Path, destdir: str, *, with_criu: bool) -> int:
    """Copy the environment and write the commands; paths in them are without ``destdir``."""
    place = prefix / "lib" / "torpor"
    staged = Path(f"{destdir}{prefix}")
    names = NAMES if with_criu else ("torpor",)
    foreign = [name for name in names if not is_ours(staged / "bin" / name)]
    if foreign:
        print(f"not installed: {staged / 'bin' / foreign[0]} is another program", file=sys.stderr)
        return 1
    target = staged / "lib" / "torpor"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(venv, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_NEEDED))
    write(place, staged / "bin", names)
    print(f"installed {', '.join(names)} to {staged / 'bin'}")
    return 0


def is_ours(script: Path) -> bool:
    """Whether a command is not there, or was written by us."""
    if not script.exists():
        return not script.is_symlink()
    with script.open("rb") as file:
        start = file.read(4096)
    return MARK.encode() in start or b"-I -m torpor.engine." in start


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Install the built engine: its environment to PREFIX/lib/torpor, its commands to PREFIX/bin.

    install.py VENV --prefix PREFIX [--destdir DIR] [--completion DIR] [--criu]

Completions for bash and zsh go where these shells look below PREFIX/share. The name `criu` is
only taken when asked for, and never from a program that is there already.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from tools.launchers import MARK, NAMES, write  # noqa: E402

SHELLS = (("bash", "", "bash-completion/completions"), ("zsh", "_", "zsh/site-functions"))
"""Shell, what its files' names begin with, where it looks for them."""
NOT_NEEDED = ("pip", "pip-*", "setuptools", "setuptools-*", "__pycache__")


def main() -> int:
    """Install; 1 when something else is in the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    parser.add_argument("--destdir", default="")
    parser.add_argument("--completion", type=Path)
    parser.add_argument("--criu", action="store_true")
    options = parser.parse_args()
    status = install(options.venv, options.prefix, options.destdir, with_criu=options.criu)
    if not status and options.completion is not None:
        names = NAMES if options.criu else NAMES[:1]
        complete(options.completion, Path(f"{options.destdir}{options.prefix}"), names)
    return status


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


def complete(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy the completions of some commands."""
    for shell, prefix, place in SHELLS:
        folder = target / "share" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(source / shell / f"{prefix}{name}", folder / f"{prefix}{name}")


def is_ours(script: Path) -> bool:
    """Whether a command is not there, or was written by us."""
    if not script.exists():
        return not script.is_symlink()
    with script.open("rb") as file:
        start = file.read(4096)
    return MARK.encode() in start or b"-I -m torpor.engine." in start


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Write `torpor` and `criu`: scripts that run from any directory.

They name the interpreter of the virtual environment by its absolute path and run isolated
(-I), so neither the caller's directory nor its PYTHON* variables reach the engine.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

MODULES = {"torpor": "torpor.engine.cli", "criu": "torpor.engine.criu"}


def main() -> None:
    """`launchers.py VENV BIN_DIR`."""
    write(Path(sys.argv[1]).absolute(), Path(sys.argv[2]), tuple(MODULES))


def write(venv: Path, bin_dir: Path, names: Sequence[str]) -> None:
    """Write the scripts of some names; ``venv`` is where the environment will be."""
    bin_dir.mkdir(parents=True, exist_ok=True)
    for name in names:
        script = bin_dir / name
        script.write_text(
            f'#!/bin/sh\nexec "{venv}/bin/python" -I -m {MODULES[name]} "$@"\n', encoding="utf-8"
        )
        script.chmod(0o755)


if __name__ == "__main__":
    main()

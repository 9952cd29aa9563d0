# SPDX-License-Identifier: Apache-2.0
"""Write build/bin/torpor and build/bin/criu: scripts that run from any directory.

They name the interpreter of the virtual environment by its absolute path and run isolated
(-I), so neither the caller's directory nor its PYTHON* variables reach the engine.
"""

import sys
from pathlib import Path


def main() -> None:
    """`launchers.py VENV BIN_DIR`."""
    venv, bin_dir = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    bin_dir.mkdir(parents=True, exist_ok=True)
    for name, module in (("torpor", "torpor.engine.cli"), ("criu", "torpor.engine.criu")):
        script = bin_dir / name
        script.write_text(
            f'#!/bin/sh\nexec "{venv}/bin/python" -I -m {module} "$@"\n', encoding="utf-8"
        )
        script.chmod(0o755)


if __name__ == "__main__":
    main()

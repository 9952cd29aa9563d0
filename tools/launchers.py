# SPDX-License-Identifier: Apache-2.0
"""Write `torpor` and `criu`: scripts that run from any directory.

They name the interpreter of the virtual environment by its absolute path and run isolated
(-I), so neither the caller's directory nor its PYTHON* variables reach the engine, and without
`site` (-S), which would look for what other packages want to run at each start.

    launchers.py VENV BIN_DIR
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAMES = ("torpor", "criu")
MARK = "from torpor.engine.start import run"
SHEBANG_LIMIT = 120
"""Linux before 5.1 cuts the first line of a script at 127 bytes."""


def main() -> None:
    """Write the bundle and the scripts."""
    venv = Path(sys.argv[1]).absolute()
    (site,) = (venv / "lib").glob("python3*/site-packages")
    bundle = [f"{venv}/bin/python", "-IS", str(Path(__file__).with_name("bundle.py")), str(site)]
    subprocess.run(bundle, check=True)
    write(venv, Path(sys.argv[2]), NAMES)


def write(venv: Path, bin_dir: Path, names: Sequence[str]) -> None:
    """Write the scripts of some names; ``venv`` is where the environment will be."""
    bin_dir.mkdir(parents=True, exist_ok=True)
    for name in names:
        script = bin_dir / name
        script.write_text(text(venv, name), encoding="utf-8")
        script.chmod(0o755)


def text(venv: Path, name: str) -> str:
    """A script for Python, or one for a shell where the path is not fit for its first line."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = f"{venv}/lib/{version}/site-packages"
    code = f"import sys\nsys.path.append({site!r})\n{MARK}\nrun({name!r})\n"
    first = f"#!{venv}/bin/python -IS\n"
    if len(first) <= SHEBANG_LIMIT and " " not in str(venv):
        return first + code
    quoted = code.replace("'", '"')
    return f'#!/bin/sh\nexec "{venv}/bin/python" -IS -c \'{quoted}\' "$@"\n'


if __name__ == "__main__":
    main()

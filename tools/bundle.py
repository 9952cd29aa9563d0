# SPDX-License-Identifier: Apache-2.0
"""Write the bundle that `torpor.engine.start` imports from.

    VENV/bin/python -IS tools/bundle.py SITE_PACKAGES [FILE]

It imports every module of the engine, notes the modules that this brought, the texts that
`dataclasses` has compiled and the regular expressions, and writes the code of all to FILE, by
default beside `start.py`.
Run it with the interpreter that the commands will use, in the environment that they will have.
"""

import _sre
import builtins
import dataclasses
import importlib
import marshal
import pkgutil
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

NOT_BUNDLED = ("torpor.engine.start", "__main__")
Patterns = dict[tuple[str | bytes, int], tuple[object, ...]]
OTHERS = ("argparse", "subprocess", "inspect")
"""Imported late by functions of the engine, or in vain by other modules."""


def main() -> None:
    """Import and write."""
    site = Path(sys.argv[1])
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)] + [str(site)]
    place = site / "torpor" / "engine"
    methods = import_all(place)
    file = Path(sys.argv[2]) if sys.argv[2:] else place / "start.bundle"
    write(file, methods, compiled_patterns(), site)


def compiled_patterns() -> Patterns:
    """What `re` has made of texts and flags: the arguments of `_sre.compile`."""
    found: Patterns = {}

    class Seen:
        def __getattr__(self, name: str) -> object:
            return getattr(_sre, name)

        def compile(self, text: object, flags: int, code: list[int], *groups: object) -> object:
            # some of the numbers are named ones, which a bundle cannot have
            found[key] = text, int(flags), [int(word) for word in code], *groups
            return _sre.compile(text, flags, code, *groups)

    re._compiler._sre = Seen()
    for _, *one in [*re._cache]:
        key = one[0], one[1]
        re._compiler.compile(*key)
    re._compiler._sre = _sre
    return found


def import_all(place: Path) -> dict[str, dict[str, CodeType]]:
    """Import the engine; module → text → code of what `dataclasses` has executed for it."""
    methods: dict[str, dict[str, CodeType]] = {}

    def execute(text: str, names: dict[str, object], local: dict[str, object]) -> None:
        code = compile(text, "<string>", "exec")
        methods.setdefault(str(names["__name__"]), {})[text] = code
        builtins.exec(code, names, local)

    setattr(dataclasses, "exec", execute)  # noqa: B010 - no attribute that mypy knows
    for found in pkgutil.walk_packages([str(place)], "torpor.engine."):
        name = found.name.rpartition(".")[2]
        if name != "__main__" and not name.startswith("test_"):
            importlib.import_module(found.name)
    for name in OTHERS:
        importlib.import_module(name)
    return methods


def write(
    path: Path,
    methods: dict[str, dict[str, CodeType]],
    patterns: Patterns,
    site: Path,
) -> None:
    """Write the bundle; a start while it is written sees the old one or the new one."""
    start = importlib.import_module("torpor.engine.start")
    index: dict[str, tuple[str, bool, int, int]] = {}
    body = bytearray()
    for name, module in sorted(sys.modules.items()):
        loader = getattr(module.__spec__, "loader", None) if hasattr(module, "__spec__") else None
        if not isinstance(loader, SourceFileLoader) or name in NOT_BUNDLED:
            continue
        source = loader.path.removeprefix(f"{site}/")
        code = loader.source_to_code(loader.get_data(loader.path), source)
        piece = marshal.dumps((code, methods.get(name, {})))
        index[name] = (source, loader.is_package(name), len(body), len(piece))
        body += piece
    path.with_suffix(".part").write_bytes(placed(start.interpreter(), patterns, index, bytes(body)))
    path.with_suffix(".part").replace(path)


def placed(
    made_for: tuple[str, int, int],
    patterns: Patterns,
    index: dict[str, tuple[str, bool, int, int]],
    body: bytes,
) -> bytes:
    """The file: length of the head, the head with places in the file, the pieces."""
    head = b""
    while True:  # places are numbers of a length that depends on the head's own
        start = 4 + len(head)
        moved = {name: (path, is_package, start + at, size)
                 for name, (path, is_package, at, size) in index.items()}  # fmt: skip
        again = marshal.dumps((made_for, moved, patterns))
        if len(again) == len(head):
            return len(head).to_bytes(4, "little") + again + body
        head = again


if __name__ == "__main__":
    main()

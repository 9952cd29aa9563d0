# SPDX-License-Identifier: Apache-2.0
"""Write the bundle that `torpor.engine.start` imports from.

    VENV/bin/python -IS tools/bundle.py SITE_PACKAGES [FILE]

It imports every module of the engine, notes the modules that this brought, how the dataclasses
came out, regular expressions and named tuples, and writes the code of all to FILE, by default
beside `start.py`.
Run it with the interpreter that the commands will use, in the environment that they will have.
"""

import _sre
import dataclasses
import importlib
import marshal
import pkgutil
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.recipes import Recipe

NOT_BUNDLED = ("torpor.engine.start", "__main__")
Patterns = dict[tuple[str | bytes, int], tuple[object, ...]]
Index, Groups = dict[str, tuple[str, bool, int, int]], dict[str, tuple[int, int]]
Head = tuple[tuple[str, int, int], Index, Groups, Patterns, dict[str, CodeType]]
OTHERS = ("argparse", "subprocess", "inspect")
"""Imported late by functions of the engine, or in vain by other modules."""

ORDER = """
import sys
sys.path[:] = {path}
from importlib.machinery import SourceFileLoader
execute = SourceFileLoader.exec_module
def noting(loader, module):
    execute(loader, module)
    print(module.__name__)
SourceFileLoader.exec_module = noting
import {module}
"""


def main() -> None:
    """Import and write."""
    site = Path(sys.argv[1])
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)] + [str(site)]
    place = site / "torpor" / "engine"
    recipes = import_all(place)
    file = Path(sys.argv[2]) if sys.argv[2:] else place / "start.bundle"
    write(file, recipes, site)


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


def compiled_constructors() -> dict[str, CodeType]:
    """Of the named tuples: text that `collections.namedtuple` would evaluate → its code."""
    found = {}
    for cls in tuple.__subclasses__():
        if hasattr(cls, "_fields"):
            names = ", ".join(cls._fields) + "," * (len(cls._fields) == 1)
            text = f"lambda _cls, {names}: _tuple_new(_cls, ({names}))"
            found[text] = compile(text, "<string>", "eval")
    return found


def import_all(place: Path) -> "dict[str, dict[str, Recipe]]":
    """Import the engine; module → class → recipe of each dataclass."""
    made: dict[str, list[type]] = {}
    plain = dataclasses._process_class

    def process(cls: type, *asked: bool) -> type:
        finished = plain(cls, *asked)
        made.setdefault(cls.__module__, []).append(finished)
        return finished

    dataclasses._process_class = process
    for found in pkgutil.walk_packages([str(place)], "torpor.engine."):
        name = found.name.rpartition(".")[2]
        if name != "__main__" and not name.startswith("test_"):
            importlib.import_module(found.name)
    for name in OTHERS:
        importlib.import_module(name)
    written = importlib.import_module("torpor.engine.recipes").written
    return {module: written(classes) for module, classes in made.items()}


def order_of_execution(module: str, site: Path) -> list[str]:
    """Modules of the engine that an import of this one executes, each after those that it needs."""
    done = subprocess.run(
        [sys.executable, "-IS", "-c", ORDER.format(path=sys.path, module=module)],
        check=True, capture_output=True, text=True, cwd=site,
    )  # fmt: skip
    return [name for name in done.stdout.split() if name.startswith("torpor.")]


def write(path: Path, recipes: "dict[str, dict[str, Recipe]]", site: Path) -> None:
    """Write the bundle; a start while it is written sees the old one or the new one."""
    start = importlib.import_module("torpor.engine.start")
    index: Index = {}
    pieces: dict[str, tuple[CodeType, dict[str, Recipe]]] = {}
    body = bytearray()
    for name, module in sorted(sys.modules.items()):
        loader = getattr(module.__spec__, "loader", None) if hasattr(module, "__spec__") else None
        if not isinstance(loader, SourceFileLoader) or name in NOT_BUNDLED:
            continue
        source = loader.path.removeprefix(f"{site}/")
        code = loader.source_to_code(loader.get_data(loader.path), source)
        pieces[name] = code, recipes.get(name, {})
        piece = marshal.dumps(pieces[name])
        index[name] = (source, loader.is_package(name), len(body), len(piece))
        body += piece
    groups: Groups = {}
    for last in set(start.TOGETHER.values()):
        names = [name for name in order_of_execution(last, site) if name in pieces]
        piece = marshal.dumps([(name, *pieces[name]) for name in names])
        groups[last] = len(body), len(piece)
        body += piece
    head = (start.interpreter(), index, groups, compiled_patterns(), compiled_constructors())
    path.with_suffix(".part").write_bytes(placed(head, bytes(body)))
    path.with_suffix(".part").replace(path)


def placed(head: Head, body: bytes) -> bytes:
    """The file: length of the head, the head with places in the file, the pieces."""
    made_for, index, groups, *compiled = head
    text = b""
    while True:  # places are numbers of a length that depends on the head's own
        start = 4 + len(text)
        moved = {name: (path, is_package, start + at, size)
                 for name, (path, is_package, at, size) in index.items()}  # fmt: skip
        together = {name: (start + at, size) for name, (at, size) in groups.items()}
        again = marshal.dumps((made_for, moved, together, *compiled))
        if len(again) == len(text):
            return len(text).to_bytes(4, "little") + again + body
        text = again


if __name__ == "__main__":
    main()

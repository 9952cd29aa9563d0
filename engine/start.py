# SPDX-License-Identifier: Apache-2.0
"""How the installed commands start fast: code from one file, and no work for the compiler.

`make engine` writes a *bundle* (tools/bundle.py) beside this module: the code of every module
that a command may import, and of each dataclass how it came out (engine/recipes.py). A start
without it, or with one of another interpreter, is slower and otherwise the same (docs/adr/0015).

Facts (CPython 3.11, the dump of a sleeping task, measured in processor time: 190 ms without all
this, 60 to 65 with it): `dataclasses` gives the source text of each method to `exec`, 865 times,
45 ms, and 20 ms also if the code is there; finding and reading 300 modules takes 1600 calls of
stat and 900 of read, 20 ms, and 9 ms also from one file, which is why those of TOGETHER are in one
piece; looking for garbage, of which there is none yet, 20 ms; taking all objects apart at the exit
25 ms; `inspect`, which dataclasses imports without need, and the half of protobuf that is pure
Python, 10 ms; 49 regular expressions 5 ms; 16 named tuples 1.5 ms.
Nothing is imported here at first that `--version` does not need, so no pathlib and no typing.
"""

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

    from torpor.engine.recipes import Recipe, Recipes

BUNDLE = "start.bundle"
UNUSED = frozenset({
    "inspect", "traceback", "selectors", "ipaddress", "calendar",
    "google.protobuf.internal.python_message", "google.protobuf.descriptor_database",
    "google.protobuf.text_encoding",
})  # fmt: skip
"""Imported by others and seldom used: their code runs when something of them is."""
OBJECTS_BEFORE_COLLECTION = 100_000
HIGH_DESCRIPTOR = 1000
TOGETHER = {
    "torpor.engine.criu.dump": "torpor.engine.dump.pipeline",
    "torpor.engine.cli.dump": "torpor.engine.dump.pipeline",
    "torpor.engine.criu.restore": "torpor.engine.restore.launch",
    "torpor.engine.cli.restore": "torpor.engine.restore.launch",
}
"""Who imports the first will import the second, with all that it imports."""


class Bundle:
    """Finds and loads modules of the file; those that are not in it are left to Python.

    ``index`` has for each module the path of its source (from the directory that holds `torpor`,
    or absolute for one of Python's own), whether it is a package, and place and size in the file.
    ``groups`` has place and size of all modules of the engine that a module of TOGETHER imports, in
    the order in which they can be executed one after the other.
    """

    def __init__(
        self,
        file: int,
        index: "dict[str, tuple[str, bool, int, int]]",
        groups: "dict[str, tuple[int, int]]",
        new_spec: "type[ModuleSpec]",
    ) -> None:
        self._new_spec = new_spec
        self._file = file
        self._site = __file__.rpartition("/torpor/")[0]
        self._index = index
        self._groups = groups
        self._recipes: Recipes | None = None

    def find_spec(
        self,
        name: str,
        _path: "Sequence[str] | None" = None,
        _target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Where the module is, if it is here."""
        if name not in self._index:
            return None
        group = self._groups.pop(TOGETHER.get(name, ""), None)
        if group is not None:
            self._import_all(group)
        return self._spec(name)

    def _spec(self, name: str) -> "ModuleSpec":
        path, is_package, _, _ = self._index[name]
        path = path if path.startswith("/") else f"{self._site}/{path}"
        spec = self._new_spec(name, self, origin=path, is_package=is_package)  # type: ignore[arg-type]
        if is_package:
            spec.submodule_search_locations = [path.rpartition("/")[0]]
        spec.has_location = True
        return spec

    def create_module(self, _spec: "ModuleSpec") -> None:
        """Modules are made as usual."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the code of a module, or see to it that its first use does."""
        if module.__name__ in UNUSED:
            module.__dict__["__getattr__"] = lambda name: self._used(module, name)
        else:
            self._execute(module)

    def _used(self, module: "ModuleType", attribute: str) -> object:
        if attribute.startswith("__"):  # importlib looks for some that need not be there
            raise AttributeError(attribute)
        module.__dict__.pop("__getattr__", None)
        self._execute(module)
        return getattr(module, attribute)

    def _import_all(self, group: "tuple[int, int]") -> None:
        """What importlib does, for modules of which none has to be looked for."""
        new_module = type(sys)
        for name, code, recipes in _read(self._file, *group):
            if name in sys.modules:
                continue
            module = sys.modules[name] = new_module(name)
            spec = self._spec(name)
            module.__spec__, module.__loader__ = spec, self  # type: ignore[assignment]
            module.__file__, module.__package__ = spec.origin, spec.parent
            if spec.submodule_search_locations is not None:
                module.__path__ = spec.submodule_search_locations
            try:
                self._run(module, code, recipes)
            except BaseException:
                del sys.modules[name]
                raise
            package, _, own = name.rpartition(".")
            if package in sys.modules:
                setattr(sys.modules[package], own, module)

    def _execute(self, module: "ModuleType") -> None:
        _, _, at, size = self._index[module.__name__]
        self._run(module, *_read(self._file, at, size))

    def _run(self, module: "ModuleType", code: "CodeType", recipes: "dict[str, Recipe]") -> None:
        if recipes:
            self._learn(module.__name__, recipes)
        exec(code, module.__dict__)  # noqa: S102 - what every importer does

    def _learn(self, module: str, recipes: "dict[str, Recipe]") -> None:
        if self._recipes is None:
            from torpor.engine.recipes import Recipes

            self._recipes = Recipes()
        self._recipes.learn(module, recipes)


def interpreter() -> "tuple[str, int, int]":
    """What a bundle is made for: another interpreter may have other modules of its own."""
    import os

    found = os.stat(sys.executable)  # noqa: PTH116 - pathlib is not imported yet
    return sys.version, found.st_size, int(found.st_mtime)


def use_bundle(path: str) -> bool:
    """Import from the bundle, if there is one for this interpreter."""
    import os
    from importlib.machinery import ModuleSpec  # not by the bundle, which needs it

    try:
        file = _out_of_the_way(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    head = int.from_bytes(os.pread(file, 4, 0), "little")
    made_for, index, groups, patterns, constructors = _read(file, 4, head)
    if made_for != interpreter():
        os.close(file)
        return False
    bundle = Bundle(file, index, groups, ModuleSpec)
    sys.meta_path.insert(0, bundle)
    _know(patterns)
    _know_tuples(constructors)
    return True


def _read(file: int, at: int, size: int) -> "Any":  # noqa: ANN401 - what was written there
    import marshal
    import os

    return marshal.loads(os.pread(file, size, at))  # noqa: S302 - our own file


def _know(patterns: "dict[tuple[str | bytes, int], tuple[object, ...]]") -> None:
    """Regular expressions that the modules make are compiled already, but for the last step."""
    import _sre  # type: ignore[import-not-found]
    from re import _compiler  # type: ignore[attr-defined]

    plain = _compiler.compile

    def compiled(text: "str | bytes", flags: int = 0) -> object:
        made_of = patterns.get((text, int(flags)))
        return _sre.compile(*made_of) if made_of else plain(text, flags)

    _compiler.compile = compiled


def _know_tuples(constructors: "dict[str, CodeType]") -> None:
    """What makes a named tuple is compiled already."""
    import collections

    def evaluated(text: str, names: "dict[str, object]") -> object:
        return eval(constructors.get(text, text), names)  # noqa: S307 - as namedtuple does

    setattr(collections, "eval", evaluated)  # noqa: B010 - no attribute that mypy knows


def _out_of_the_way(file: int) -> int:
    """A descriptor that no number of a command line (`--inherit-fd fd[3]:...`) means by chance."""
    import fcntl
    import os

    try:
        moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR)
    except OSError:  # the limit of open files is lower
        return file
    os.close(file)
    return moved


def run(name: str) -> "NoReturn":
    """Run the command of that name, `criu` or `torpor`, and leave."""
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION)
    if sys.argv[1:2] not in (["--version"], ["-V"]):
        use_bundle(f"{__file__.rpartition('/')[0]}/{BUNDLE}")
    if name == "criu":
        from torpor.engine.criu.entry import main
    else:
        from torpor.engine.cli.entry import main
    try:
        status: object = main()
    except SystemExit as left:
        status = left.code
    leave(int(status) if isinstance(status, int) else status is not None)


def leave(status: int) -> "NoReturn":
    """End at once: what is buffered is written, what is in memory need not be taken apart."""
    import os

    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = status or 1
    os._exit(status)

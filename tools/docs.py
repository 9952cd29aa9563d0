# SPDX-License-Identifier: Apache-2.0
"""What docs/limits.md and docs/support-matrix.md say of the code, written from the code.

    docs.py [--check]

Between the marks `<!-- generated: NAME -->` and `<!-- end -->` of both pages stands what this
writes; all else is written by hand. With --check nothing is written: the status says whether
the pages are fresh.
"""

import ast
import importlib
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0:0] = [str(ROOT)]

from tools import support  # noqa: E402
from torpor.engine.kind import FileKind, Limit  # noqa: E402
from torpor.engine.kinds import FILE_KINDS  # noqa: E402

LIMITS_PAGE, MATRIX_PAGE = ROOT / "docs" / "limits.md", ROOT / "docs" / "support-matrix.md"
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHARED_BY = 3
"""A case that so many kinds have is told once, before them."""
ROOMS = (("memory", "torpor.engine.memory"), ("tasks", "torpor.engine.tasks"))
"""Headings of LIMITS that do not belong to a descriptor, and where they are."""
RAISED = {
    "stop": (
        "engine/dump/preflight.py",
        "engine/dump/report.py",
        "engine/dump/freeze.py",
        "engine/kernel/addressspace.py",
        "engine/kernel/net.py",
        "engine/kernel/taskfiles.py",
        "engine/kernel/livefd.py",
        "engine/kernel/fdcalls.py",
        "engine/kernel/freezer.py",
    ),
    "trees": (
        "engine/restore/tree.py",
        "engine/restore/layout.py",
        "engine/restore/launch.py",
        "engine/restore/segments.py",
        "engine/restore/arena.py",
        "engine/sockets/unix_plan.py",
    ),
    "pods": ("plugin/agent/locate.py", "plugin/agent/rootfs.py", "plugin/agent/pack.py"),
}
"""Refusals that are raised where they are met, by heading; found in the source."""


def main() -> int:
    """Write the pages, or compare them."""
    stale = [page for page in (LIMITS_PAGE, MATRIX_PAGE) if page.read_text() != fresh(page)]
    if "--check" in sys.argv[1:]:
        for page in stale:
            print(f"{page.relative_to(ROOT)}: not fresh; run `make docs`")
        return 1 if stale else 0
    for page in stale:
        page.write_text(fresh(page))
        print(f"{page.relative_to(ROOT)} is written")
    return 0


def fresh(page: Path) -> str:
    """The page with every generated block as the code has it now."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{block(m[2])}\n{m[3]}", page.read_text())


def block(name: str) -> str:
    """Text of one generated block."""
    if name == "descriptors":
        return descriptors()
    if name == "matrix":
        return matrix()
    if name in RAISED:
        return cases(raised(RAISED[name]), "where")
    for heading, package in ROOMS:
        if name == heading:
            return cases(as_rows(declared(package)))
    raise ValueError(f"no such block: {name}")


# ---- limits


def descriptors() -> str:
    """The cases of every kind of descriptor; what many kinds share comes first."""
    count = Counter(limit for kind in FILE_KINDS for limit in kind.limits)
    shared = [limit for limit, times in count.items() if times >= SHARED_BY]
    known = set(count)
    free = [limit for limit in declared("torpor.engine.files") if limit not in known]
    parts = [f"### any descriptor\n\n{cases(as_rows((*shared, *free)))}"]
    for kind in FILE_KINDS:
        own = [limit for limit in kind.limits if limit not in shared]
        if own:
            parts.append(f"### {title(kind)}\n\n{cases(as_rows(own))}")
    return "\n".join(parts)


def title(kind: FileKind[Any]) -> str:
    """Heading of a kind."""
    return "other kernel objects and devices" if kind.name == "refused" else kind.name


def declared(package: str) -> list[Limit]:
    """Every `Limit` that a module of a package has, alone or in its LIMITS; in order."""
    found: dict[Limit, None] = {}
    for module in modules(package):
        for value in vars(module).values():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Limit):
                    found[one] = None
    if package.endswith(".tasks"):  # what a task is, is put together there
        for name in ("preflight", "sharing"):
            found |= dict.fromkeys(importlib.import_module(f"torpor.engine.dump.{name}").LIMITS)
    return list(found)


def modules(package: str) -> Iterable[ModuleType]:
    """Modules of a package, without its tests."""
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not info.name.startswith("test_"):
            yield importlib.import_module(f"{package}.{info.name}")


def as_rows(limits: Iterable[Limit]) -> list[tuple[str, str, str]]:
    """(case, what, remedy) of each."""
    return [(f"`{limit.case}`", limit.what, limit.remedy) for limit in limits]


def raised(paths: Sequence[str]) -> list[tuple[str, str, str]]:
    """(file, what, remedy) of every `Refused(...)` with a remedy in these files."""
    rows: dict[tuple[str, str, str], None] = {}
    for path in paths:
        source = ast.parse((ROOT / path).read_text())
        module = importlib.import_module("torpor." + path.removesuffix(".py").replace("/", "."))
        for node in ast.walk(source):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused":
                given = {word.arg: word.value for word in node.keywords}
                if node.args and "remedy" in given:
                    what, remedy = text(node.args[0], module), text(given["remedy"], module)
                    rows[(f"`{Path(path).stem}`", what, remedy)] = None
    return list(rows)


def text(node: ast.expr, module: ModuleType) -> str:
    """A literal as it reads; what is known only at run time is an ellipsis."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part, module) for part in node.values)
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return str(getattr(module, node.id, "…"))
    return "…"


def cases(rows: Sequence[tuple[str, str, str]], first: str = "case") -> str:
    """A table of refusals."""
    lines = [f"| {first} | what is refused | what to do |", "|---|---|---|"]
    lines += [f"| {case} | {cell(what)} | {cell(remedy)} |" for case, what, remedy in rows]
    return "\n".join(lines) + "\n"


def cell(value: str) -> str:
    """A text inside a table."""
    return " ".join(value.replace("|", "\\|").split())


# ---- support matrix


def matrix() -> str:
    """A row a kind of descriptor, then a row for everything else that a task has."""
    lines = ["| kind | dump | restore | CRIU reads ours | we read CRIU's | tests |"]
    lines.append("|---" * 6 + "|")
    for kind in FILE_KINDS:
        beside = unit_test(kind)
        paths = [str(beside.relative_to(ROOT))] if beside.exists() else []
        lines.append(row(title(kind), support.KINDS[kind.name], paths))
    lines += [row(name, has, []) for name, has in support.STATE.items()]
    return "\n".join(lines) + "\n"


def unit_test(kind: FileKind[Any]) -> Path:
    """Where the test beside a kind's module is to be."""
    *package, name = type(kind).__module__.split(".")[1:]
    return ROOT.joinpath(*package, f"test_{name}.py")


def row(name: str, has: support.Support, beside: Sequence[str]) -> str:
    """A line of the matrix."""
    tests = ", ".join(f"[{Path(path).stem}](../{path})" for path in (*beside, *has.tests))
    taken = ("yes", "yes") if has.is_taken else ("refused, by name", "–")
    return f"| {' | '.join((name, *taken, has.ours, has.theirs, tests))} |"


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Builds the C programs that are neither Python modules nor linked to a libc.

`build_programs` makes the static programs (placeholder, pid helper, hook
client); `build_executor` makes the flat, position-independent code that runs
inside a task.  Both use plain cc and objcopy, give the same bytes for the same
compiler and sources, and fail the build when a result breaks its rules.
Standard library only: setup.py calls this before anything is installed.

    python3 native/build.py programs OUT_DIR
    python3 native/build.py executor OUT_DIR
"""

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
MACHINE = platform.machine()
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wvla", "-Wstrict-prototypes")
COMMON = (
    "-std=gnu11",
    "-Os",
    *WARNINGS,
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fno-ident",
    "-fno-strict-aliasing",
    "-fno-tree-loop-distribute-patterns",
    f"-ffile-prefix-map={NATIVE}=native",
    f"-I{NATIVE / 'include'}",
    f"-I{NATIVE}",
)
# No CET notes, and no vector registers where a tracer would have to keep them.
MACHINE_FLAGS = {"x86_64": ("-fcf-protection=none", "-mno-sse", "-mno-mmx", "-mno-avx")}
LINK = ("-nostdlib", "-nostartfiles", "-Wl,--build-id=none", "-Wl,-z,noexecstack")

# The one section of the linked executor that is loaded.
EXECUTOR_SECTION = ".text"
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
SECTION_WRITE, SECTION_ALLOC = 0x1, 0x2
SECTION_RELA, SECTION_REL = 4, 9


class BuildError(Exception):
    """A program broke a rule of the build; the text names program and rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One static program: where its sources are and how large it may get."""

    name: str
    sources: tuple[str, ...]
    budget_bytes: int


PROGRAMS = (
    Program(
        name="torpor-placeholder",
        sources=("placeholder/placeholder.c",),
        budget_bytes=32 * 1024,
    ),
    Program(name="torpor-pidhelper", sources=("pidhelper/pidhelper.c",), budget_bytes=32 * 1024),
    Program(name="torpor-hook", sources=("hook/hook.c",), budget_bytes=32 * 1024),
)
EXECUTOR_BUDGET_BYTES = 64 * 1024


def build_all(out_dir: Path) -> list[Path]:
    """Everything that a package of torpor carries in engine/blobs."""
    return [*build_programs(out_dir), build_executor(out_dir)]


def build_programs(out_dir: Path) -> list[Path]:
    """Compile every static program to `out_dir`; returns their paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    return [_build_program(program, out_dir) for program in PROGRAMS]


def build_executor(
    out_dir: Path,
    *,
    sources: tuple[Path, ...] | None = None,
    script: Path | None = None,
    budget_bytes: int = EXECUTOR_BUDGET_BYTES,
) -> Path:
    """Compile the code that runs inside a task to `executor-<machine>.bin`.

    The result is mapped anywhere and entered at its first byte, so whatever
    would need a loader fails the build: relocations that stay, undefined
    symbols, writable data, or more bytes than `budget_bytes`.
    """
    sources = sources or tuple(sorted((NATIVE / "executor").glob("*.c")))
    script = script or NATIVE / "executor" / "executor.lds"
    if not sources:
        raise BuildError("executor: no C source found in native/executor")
    out_dir.mkdir(parents=True, exist_ok=True)
    flat = out_dir / f"executor-{MACHINE}.bin"
    with tempfile.TemporaryDirectory(prefix="torpor-build-") as name:
        linked = _link_executor(sources, script, Path(name))
        _check_linked_executor(linked)
        fresh = Path(name) / flat.name
        _run("objcopy", "-O", "binary", "-j", EXECUTOR_SECTION, str(linked), str(fresh))
        _check_size(fresh, budget_bytes)
        shutil.copyfile(fresh, flat)
    return flat


def _link_executor(sources: tuple[Path, ...], script: Path, work: Path) -> Path:
    linked = work / f"executor-{MACHINE}.elf"
    objects = [_compile_object(source, work) for source in sources]
    for path in objects:
        _reject_writable_sections(path)
    script_flags = (f"-Wl,-T,{script}", "-Wl,-e,0", "-Wl,--no-undefined")
    checks = ("-Wl,--orphan-handling=error", "-Wl,--emit-relocs")
    _run("cc", "-static", *LINK, *script_flags, *checks, *map(str, objects), "-o", str(linked))
    return linked


def _build_program(program: Program, out_dir: Path) -> Path:
    target = out_dir / program.name
    sources = [str(NATIVE / source) for source in program.sources]
    flags = (*COMMON, *MACHINE_FLAGS.get(MACHINE, ()), "-fno-pic", "-ffunction-sections")
    link = (*LINK, "-static", "-no-pie", "-s", "-Wl,--gc-sections", "-Wl,-z,norelro")
    _run("cc", *flags, *link, *sources, "-o", str(target))
    _check_size(target, program.budget_bytes)
    text = _run("readelf", "--program-headers", "--wide", str(target))
    if "INTERP" in text or "DYNAMIC" in text:
        raise BuildError(f"{program.name}: is not static, it asks for a loader")
    target.chmod(0o755)
    return target


def _compile_object(source: Path, out_dir: Path) -> Path:
    target = out_dir / f"{source.stem}.o"
    flags = (*COMMON, *MACHINE_FLAGS.get(MACHINE, ()), "-fPIC", "-fvisibility=hidden")
    _run("cc", *flags, "-c", str(source), "-o", str(target))
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    name: str
    kind: int
    flags: int
    address: int
    size: int
    offset: int


def _sections(path: Path) -> list[_Section]:
    """The section table of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    header = ELF_HEADER.unpack_from(data)
    table, count, names_index = header[6], header[12], header[13]
    rows = [ELF_SECTION.unpack_from(data, table + i * ELF_SECTION.size) for i in range(count)]
    names = rows[names_index][4]
    return [
        _Section(
            name=data[names + row[0] : data.index(b"\0", names + row[0])].decode(),
            kind=row[1],
            flags=row[2],
            address=row[3],
            size=row[5],
            offset=row[4],
        )
        for row in rows
    ]


def _reject_writable_sections(path: Path) -> None:
    for section in _sections(path):
        if section.flags & SECTION_WRITE and section.flags & SECTION_ALLOC and section.size:
            raise BuildError(
                f"{path.name}: writable section {section.name} of {section.size} bytes; "
                "code in a task has no data of its own, pass it in"
            )


def _check_linked_executor(path: Path) -> None:
    """One code section, entry at its start, and every relocation resolved by distance alone."""
    for section in _sections(path):
        if section.kind in (SECTION_RELA, SECTION_REL) and section.flags & SECTION_ALLOC:
            raise BuildError(f"{path.name}: relocation section {section.name} is left")
        if section.flags & SECTION_ALLOC and section.size and section.name != EXECUTOR_SECTION:
            raise BuildError(f"{path.name}: section {section.name} is not part of the flat code")
    relocations = _run("readelf", "--relocs", "--wide", str(path))
    absolute = re.findall(r"\bR_X86_64_(?:64|32|32S|16|8|GLOB_DAT|RELATIVE)\b", relocations)
    absolute += re.findall(r"\bR_AARCH64_(?:ABS64|ABS32|ABS16|MOVW_\w+)\b", relocations)
    if absolute:
        raise BuildError(
            f"{path.name}: {len(absolute)} absolute relocations ({absolute[0]}, ...): "
            "the code would only run at one address"
        )
    undefined = _run("nm", "--undefined-only", str(path)).strip()
    if undefined:
        raise BuildError(f"{path.name}: undefined symbols: {undefined}")


def _check_size(path: Path, budget_bytes: int) -> None:
    size = path.stat().st_size
    if not 0 < size <= budget_bytes:
        raise BuildError(f"{path.name}: {size} bytes, the budget is {budget_bytes}")


def _run(program: str, *arguments: str) -> str:
    """Run one tool; its own words become the error."""
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(
        (program, *arguments), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"{program} ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def main(arguments: list[str]) -> int:
    """Build what the command line names; prints each result and its size."""
    if len(arguments) != 2 or arguments[0] not in ("programs", "executor"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    out_dir = Path(arguments[1])
    try:
        built = build_programs(out_dir) if arguments[0] == "programs" else [build_executor(out_dir)]
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path in built:
        sys.stdout.write(f"{path} {path.stat().st_size}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Reads the part of the Dockerfile language that our images are written in.

What is not known is an error and never passed over, so that a Dockerfile that builds here means
the same to a container engine.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deploy.image.process import BuildError

SUPPORTED = (
    "FROM", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD", "LABEL", "EXPOSE",
    "STOPSIGNAL",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction: its word, its text, and the line it began in."""

    word: str
    text: str
    line: int

    def pairs(self) -> dict[str, str]:
        """The NAME=VALUE of ENV and LABEL."""
        words = shlex.split(self.text)
        if not words or not all("=" in word for word in words):
            raise BuildError(f"line {self.line}: {self.word} needs NAME=VALUE")
        return dict(word.split("=", 1) for word in words)

    def argv(self) -> list[str]:
        """The list of ENTRYPOINT and CMD."""
        try:
            words = json.loads(self.text)
        except ValueError:
            words = None
        if not isinstance(words, list):
            raise BuildError(f"line {self.line}: {self.word} needs the form of a JSON list")
        return [str(word) for word in words]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A COPY: sources and destination, from the context or from another stage."""

    stage: str
    sources: tuple[str, ...]
    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: what it begins from, its name, its instructions."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            found = re.fullmatch(r"(\S+)(?:\s+[Aa][Ss]\s+(\S+))?", instruction.text)
            if not found:
                raise BuildError(f"line {instruction.line}: cannot read FROM {instruction.text}")
            stages.append(Stage(base=found[1], name=found[2] or str(len(stages)), instructions=()))
        elif not stages:
            raise BuildError(f"line {instruction.line}: {instruction.word} before FROM")
        else:
            last = stages[-1]
            more = (*last.instructions, instruction)
            stages[-1] = Stage(base=last.base, name=last.name, instructions=more)
    if not stages:
        raise BuildError("a Dockerfile without FROM")
    return stages


def parse_copy(instruction: Instruction) -> Copy:
    """The parts of a COPY."""
    words = shlex.split(instruction.text)
    stage = ""
    while words and words[0].startswith("--"):
        flag, _, value = words.pop(0).partition("=")
        if flag != "--from":
            raise BuildError(f"line {instruction.line}: COPY {flag} is not known here")
        stage = value
    if len(words) < 2:
        raise BuildError(f"line {instruction.line}: COPY needs a source and a destination")
    *sources, destination = words
    if len(sources) > 1 and not destination.endswith("/"):
        raise BuildError(f"line {instruction.line}: several sources need a destination with a /")
    return Copy(stage=stage, sources=tuple(sources), destination=destination)


class Ignore:
    """The rules of a .dockerignore: the last that matches a path, or a folder above it, decides.

    Args:
        text: the file's content.
    """

    def __init__(self, text: str) -> None:
        self._rules = []
        for line in text.splitlines():
            rule = line.strip()
            if rule and not rule.startswith("#"):
                keep, pattern = rule.startswith("!"), rule.lstrip("!").strip("/")
                self._rules.append((keep, re.compile(_regex(pattern))))

    def __call__(self, path: str) -> bool:
        """Whether the path, relative to the context, is left out."""
        pure = PurePosixPath(path)
        above = [str(p) for p in (pure, *pure.parents) if str(p) != "."]
        ignored = False
        for keep, pattern in self._rules:
            if any(pattern.fullmatch(candidate) for candidate in above):
                ignored = not keep
        return ignored


def context_files(context: Path, source: str, ignored: Ignore) -> list[Path]:
    """The files that a COPY of that source takes, in order; directories only by their files."""
    top = context / source
    if not top.resolve().is_relative_to(context.resolve()):
        raise BuildError(f"COPY {source} is outside of the context")
    candidates = [top] if top.is_file() else sorted(top.rglob("*"))
    files = [
        path
        for path in candidates
        if (path.is_file() or path.is_symlink()) and not ignored(str(path.relative_to(context)))
    ]
    if not files:
        raise BuildError(f"COPY {source}: nothing there, or all of it ignored")
    return files


def _instructions(text: str) -> list[Instruction]:
    found = []
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not pending and not line.strip()):
            continue
        start = start if pending else number
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1].rstrip() + " "
            continue
        word, _, rest = pending.partition(" ")
        if word.upper() not in SUPPORTED:
            raise BuildError(f"line {start}: {word} is not known here")
        found.append(Instruction(word=word.upper(), text=rest.strip(), line=start))
        pending = ""
    if pending:
        raise BuildError(f"line {start}: the last line is continued")
    return found


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part, re.escape(part)) for part in parts)

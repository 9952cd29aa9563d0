# SPDX-License-Identifier: Apache-2.0
"""What is mutated: image directories dumped from workloads of the catalogue, and archives."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from google.protobuf.message import Message

from tests.conftest import descendants, reap
from tests.functional.catalogue.case import Case
from tests.functional.catalogue.every import AREAS
from tests.functional.conftest import program
from tests.functional.harness import Live
from torpor.engine.images import manifest
from torpor.engine.images.format import WORD, read_entries
from torpor.engine.images.kinds import Kind, kind_of, payload_of

LARGEST = 100 << 10
"""Bytes of messages of a directory that is worth it: reading a larger one takes too long."""


@dataclass(frozen=True, slots=True)
class Image:
    """One file of messages, taken apart."""

    name: str
    kind: Kind
    content: bytes
    entries: tuple[tuple[Message, bytes], ...]

    @classmethod
    def of(cls, path: Path) -> "Image | None":
        """None when it is no file of messages."""
        name = path.name.removesuffix(".img")
        kind = kind_of(name)
        if kind is None:
            return None
        content = path.read_bytes()
        found = read_entries(BytesIO(content), path.name, kind)
        return cls(path.name, kind, content, tuple((e.message, e.payload) for e in found))


@dataclass(frozen=True, slots=True)
class Dumped:
    """An image directory that is restored to itself after each input."""

    case: str
    path: Path
    images: tuple[Image, ...]
    manifest: bytes

    def put(self, name: str, content: bytes) -> None:
        """Give a file another content; it has the old one again after `mend`."""
        (self.path / name).write_bytes(content)

    def mend(self, name: str, content: bytes | None) -> None:
        """The old content of a file; None takes it away."""
        path = self.path / name
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Ids and pids of it: those that a dangling or wrong reference may hit."""
        from tests.fuzz.mutate import numbers_in

        return [n for image in self.images for message, _ in image.entries[:20]
                for n in numbers_in(message) if 0 < n < 1 << 31][:4000]  # fmt: skip


def encoded(kind: Kind, entries: Sequence[tuple[Message, bytes]]) -> bytes:
    """An image file of messages as they are: nothing is checked."""
    parts = [WORD.pack(word) for word in (kind.family, kind.magic) if word is not None]
    for message, payload in entries:
        body = message.SerializePartialToString()
        padding = payload_of(message).padding if payload else 0
        parts += [WORD.pack(len(body)), body, payload, bytes(padding)]
    return b"".join(parts)


def cases(most: int | None = None) -> list[Case]:
    """One of each program of the catalogue that a dump takes, spread over the areas."""
    found: dict[str, Case] = {}
    columns = [[c for c in area if not (c.refused or c.busy or c.user)]
               for area in AREAS.values()]  # fmt: skip
    for row in range(max(map(len, columns))):
        for column in columns:
            if row < len(column):
                found.setdefault(column[row].program, column[row])
    return list(found.values())[:most]


def dump(folder: Path, chosen: Sequence[Case]) -> Iterator[Dumped]:
    """Start each workload, dump and end it. A state that this machine lacks is left out."""
    for number, case in enumerate(chosen):
        place = folder / f"{number}-{case.program}"
        place.mkdir(parents=True)
        place.chmod(0o777)
        running = set(descendants())
        live = Live(place, [*program(case.program), str(place), *case.arguments])
        try:
            if live.await_file("ready").startswith("lacking: "):
                continue
            live.mark()
            images = live.dump(words=case.options)
        finally:
            live.end()
            _end_others(set(descendants()) - running)
        found = tuple(filter(None, map(Image.of, sorted(images.iterdir()))))
        if sum(len(image.content) for image in found) <= LARGEST:
            yield Dumped(case.name, images, found, (images / manifest.NAME).read_bytes())


def _end_others(pids: set[int]) -> None:
    """Peers outside of the tree, which wait for a verdict."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    reap(1.0)


def tree_archive(folder: Path) -> Path:
    """An archive of a directory tree with everything that one can hold."""
    from torpor.plugin.agent.pack import Packer
    from torpor.plugin.agent.treefile import Writer

    tree, archive = folder / "tree", folder / "archive"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(b"content" * 1000)
    os.truncate(tree / "a" / "file", 1 << 20)
    os.link(tree / "a" / "file", tree / "a" / "b" / "hard")
    (tree / "link").symlink_to("a/../../x")
    os.mkfifo(tree / "fifo")
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        with Writer(archive) as writer:
            Packer(root=root, writer=writer, subject="tree").run()
    finally:
        os.close(root)
    return archive

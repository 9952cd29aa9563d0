# SPDX-License-Identifier: Apache-2.0
"""Whether what one image calls by a number is in the other one, and there once.

Facts (of images of CRIU 4.2): data of pipes name their pipe, remaps and fifos a regular file, a
memfd its inode, a Unix socket its peer's inode (an external one is marked, its peer is not in the
images). A task's tables are not here: whoever reads tasks looks for them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torpor.engine.errors import BadImage
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.kinds import file_name, kind_of
from torpor.engine.images.source import Source

USK_EXTERN = 1


@dataclass(frozen=True, slots=True)
class Field:
    """A number in an image (``pipes-data``) or in the files of a type (``PIPE``)."""

    image: str
    name: str

    @property
    def file(self) -> str:
        """The file that it is in."""
        return "files.img" if self.image.isupper() else file_name(self.image)


def _always(_: Any) -> bool:  # noqa: ANN401
    return True


def _has_peer(message: Any) -> bool:  # noqa: ANN401
    return bool(message.peer) and not message.uflags & USK_EXTERN


@dataclass(frozen=True, slots=True)
class Reference:
    """What ``field`` says must be in ``target``, for messages that it ``counts`` for."""

    field: Field
    target: Field
    counts: Callable[[Any], bool] = _always


REFERENCES = (
    Reference(Field("pipes-data", "pipe_id"), Field("PIPE", "pipe_id")),
    Reference(Field("fifo-data", "pipe_id"), Field("FIFO", "pipe_id")),
    Reference(Field("FIFO", "regf_id"), Field("REG", "id")),
    Reference(Field("remap-fpath", "orig_id"), Field("REG", "id")),
    Reference(Field("MEMFD", "inode_id"), Field("memfd", "inode_id")),
    Reference(Field("UNIXSK", "peer"), Field("UNIXSK", "ino"), _has_peer),
)
ONCE = (
    Field("pipes-data", "pipe_id"),
    Field("fifo-data", "pipe_id"),
    Field("remap-fpath", "orig_id"),
    Field("memfd", "inode_id"),
    Field("UNIXSK", "ino"),
)
"""What may be there once only."""


def check(images: ImageDirectory, source: Source) -> None:
    """Raise for the first number that leads nowhere or to two.

    Raises:
        BadImage: names the file and the field.
    """
    for field in ONCE:
        counted = Counter(
            getattr(message, field.name) for message in _messages(field, images, source)
        )
        for number in (number for number, times in counted.items() if times > 1):
            raise _bad(field, number, "is there twice")
    for reference in REFERENCES:
        wanted = _numbers(reference.field, images, source, reference.counts)
        there = set(_numbers(reference.target, images, source)) if wanted else set()
        for number in sorted(wanted - there):
            what = f"leads nowhere: there is no such {reference.target.name}"
            raise _bad(reference.field, number, what, f"in {reference.target.file}")


def _numbers(
    field: Field, images: ImageDirectory, source: Source, counts: Callable[[Any], bool] = _always
) -> set[int]:
    return {getattr(m, field.name) for m in _messages(field, images, source) if counts(m)}


def _messages(field: Field, images: ImageDirectory, source: Source) -> Iterable[Any]:
    if field.image.isupper():
        return (message for _, message in source.files(field.image))
    return _entries(field.image, images)


def _entries(image: str, images: ImageDirectory) -> Iterator[Any]:
    kind = kind_of(image)
    if kind is not None:
        yield from images.messages(image, kind.message)


def _bad(field: Field, number: int, what: str, cause: str = "") -> BadImage:
    return BadImage(what, subject=f"{field.file}, {field.name} {number}", cause=cause)

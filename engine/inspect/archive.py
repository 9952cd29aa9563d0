# SPDX-License-Identifier: Apache-2.0
"""Images inside a tar archive, as containerd, CRI-O and podman export them.

Facts: the images lie in `checkpoint/` (containerd, podman) or at the top. Nothing of an archive
is trusted: only regular members with names of images are taken, by name into one flat folder;
links, devices and paths in it are never followed or made.
"""

import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torpor.engine.errors import BadImage
from torpor.engine.images import manifest
from torpor.engine.images.failures import translated

MEMBER = re.compile(r"(?:\./)?(?:checkpoint/)?([^/]+)")
MAX_MEMBERS = 1 << 20


@contextmanager
def directory_of(path: Path) -> Iterator[Path]:
    """The directory itself, or a temporary one with the images of an archive.

    Raises:
        BadImage: it is no archive, or has no images.
    """
    if path.is_dir() or not path.exists():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="torpor-") as folder:
        place = Path(folder)
        with translated("read", str(path)):
            try:
                with tarfile.open(path, "r:*") as archive:
                    _unpack(archive, place, path)
            except (tarfile.TarError, EOFError) as error:
                raise BadImage(
                    "neither a directory nor a tar archive", subject=str(path), cause=str(error),
                    remedy="unpack it first if it is compressed with zstd",
                ) from error  # fmt: skip
        yield place


def _unpack(archive: tarfile.TarFile, place: Path, path: Path) -> None:
    taken: set[str] = set()
    for number, member in enumerate(archive):
        if number > MAX_MEMBERS:
            raise BadImage("too many members", subject=str(path))
        name = _image_name(member.name)
        source = archive.extractfile(member) if name and member.isreg() else None
        if name is None or source is None:
            continue
        if name in taken:
            raise BadImage("a member is there twice", subject=f"{path}, {name}")
        taken.add(name)
        with source, (place / name).open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    if not taken:
        raise BadImage("no images in the archive", subject=str(path))


def _image_name(member: str) -> str | None:
    match = MEMBER.fullmatch(member)
    if match is None:
        return None
    known = match[1] == manifest.NAME or manifest.IMAGE_NAME.fullmatch(match[1])
    return match[1] if known else None

# SPDX-License-Identifier: Apache-2.0
"""torpor.json: digests of all files of a directory, and what CRIU's format cannot say.

CRIU's own directories have no such file and are taken without it. The file is JSON:

    {"version": 2, "facts": {...}, "files": {"core-41.img": {"bytes": 1740, "sha256": "..."},
     "pages-1.img": {"bytes": 94208, "xxh64-256k": "..."}}, "digest": "..."}

A file's digest is named by its algorithm. Pages files, which may be long, have `xxh64-256k`:
XXH64 of the XXH64 of every 256 KiB, little-endian (version 1 had `sha256` for them as well).
`digest` is the SHA-256 of the rest in canonical form (sorted keys, no blanks), so that a flipped
bit in this file is seen as well. `facts` belongs to the kinds: section, key, JSON value.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torpor.engine.errors import BadImage
from torpor.engine.images import sha256

NAME = "torpor.json"
VERSION = 2
MAX_BYTES = 64 << 20
MAX_DIGITS = 20

IMAGE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.tar\.gz)?\.img|stats-(dump|restore)")
"""Names that may be image files; nothing else of a directory is ever opened."""
SHA256, XXH64 = "sha256", "xxh64-256k"
DIGESTS = {SHA256: re.compile(r"[0-9a-f]{64}"), XXH64: re.compile(r"[0-9a-f]{16}")}

Facts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """Size and digest of one file."""

    size_bytes: int
    digest: str
    algorithm: str = SHA256


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What torpor.json holds."""

    files: Mapping[str, FileDigest] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)


def encode(manifest: Manifest) -> bytes:
    """The text of torpor.json."""
    document: dict[str, Any] = {
        "version": VERSION,
        "facts": manifest.facts,
        "files": {
            name: {"bytes": entry.size_bytes, entry.algorithm: entry.digest}
            for name, entry in manifest.files.items()
        },
    }
    document["digest"] = _digest(document)
    return json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"


def decode(text: bytes) -> Manifest:
    """Parse and check torpor.json.

    Raises: BadImage.
    """
    try:
        document = json.loads(text, parse_int=_number, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _bad("not JSON", str(error)) from error
    if not isinstance(document, dict):
        raise _bad("not a JSON object")
    version = document.get("version")
    if not isinstance(version, int) or version < 1:
        raise _bad("no version", f"found {version!r}")
    if version > VERSION:
        raise _bad(
            "written by a newer torpor",
            f"version {version}, this torpor knows {VERSION}",
            remedy="use a torpor at least as new as the one that dumped",
        )
    stated = document.pop("digest", None)
    if stated != _digest(document):
        raise _bad("digest differs", "the file was changed after the dump")
    return Manifest(files=_files(document.get("files")), facts=_facts(document.get("facts")))


def _number(text: str) -> int:
    """Nothing that the kernel knows has more than 64 bits."""
    if len(text) <= MAX_DIGITS and -(1 << 63) <= (value := int(text)) < 1 << 64:
        return value
    raise ValueError(f"number of {len(text)} digits")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _digest(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return sha256.of_bytes(canonical.encode())


def _files(value: object) -> dict[str, FileDigest]:
    if not isinstance(value, dict):
        raise _bad("no list of files")
    files = {}
    for name, entry in value.items():
        if not IMAGE_NAME.fullmatch(name):
            raise _bad("lists a name that is not an image's", repr(name)[:80])
        files[name] = _file(name, entry)
    return files


def _file(name: str, entry: object) -> FileDigest:
    for algorithm, form in DIGESTS.items():
        match entry:
            case {"bytes": int(size), **rest} if isinstance(found := rest.get(algorithm), str):
                if form.fullmatch(found):
                    return FileDigest(size_bytes=size, digest=found, algorithm=algorithm)
    raise _bad("entry of a file is malformed", name)


def _facts(value: object) -> Facts:
    if not isinstance(value, dict) or not all(isinstance(part, dict) for part in value.values()):
        raise _bad("facts are malformed")
    return value


def _bad(
    what: str, cause: str = "", *, remedy: str = "take the images from an intact copy"
) -> BadImage:
    return BadImage(what, subject=NAME, cause=cause, remedy=remedy)

# SPDX-License-Identifier: Apache-2.0
"""The manifest of a stored checkpoint: what it is, where it ran, which chunks hold which file.

A manifest is the last thing written, so where there is one the checkpoint is whole. It is
canonical JSON (sorted keys, no blanks): its SHA-256 names it in the status of the
Checkpoint. One that is read back is not trusted: every path, size and digest is checked
before a file is made from it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torpor.engine.errors import BadImage

VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
MAX_CHUNK_BYTES = 16 << 20
MAX_FILES = 1_000_000
MAX_FILE_BYTES = 1 << 46
_MAX_PATH_BYTES = 4096

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """Which Checkpoint object: the key of everything in a store."""

    namespace: str
    name: str
    uid: str

    def __post_init__(self) -> None:
        """Refuse what is no name of Kubernetes, since these become directory names."""
        for text, pattern in ((self.namespace, _NAME), (self.name, _NAME), (self.uid, _UID)):
            if not pattern.fullmatch(text) or ".." in text:
                raise _bad(f"{text!r:.80} is no name of an object")

    @property
    def path(self) -> str:
        """Where in the store it lies, relative to the root."""
        return f"v1/checkpoints/{self.namespace}/{self.name[:190]}-{self.uid}"

    def __str__(self) -> str:
        return f"checkpoint {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Where the checkpoint was taken: what a restore has to match."""

    name: str
    kernel: str
    arch: str
    cpu_flags_sha256: str
    engine_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """A container in the checkpoint."""

    name: str
    image: str
    image_id: str
    tasks: int
    memory_bytes: int
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Everything in a manifest but its files."""

    ref: CheckpointRef
    pod_name: str
    pod_uid: str
    created: str
    node: NodeFacts
    containers: tuple[ContainerFacts, ...]
    pod_template: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a file, by the digest of its plain bytes."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A regular file of the checkpoint, relative to its root."""

    path: str
    size_bytes: int
    mode: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole checkpoint."""

    head: Head
    files: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        """Plain size of all files."""
        return sum(entry.size_bytes for entry in self.files)

    def digest_below(self, directory: str) -> str:
        """One digest for all files below a directory, by way of their chunks."""
        total = hashlib.sha256()
        for entry in sorted(self.files, key=lambda each: each.path):
            if entry.path.startswith(directory.rstrip("/") + "/"):
                total.update(f"{entry.path}\0{entry.size_bytes}\0".encode())
                total.update("".join(chunk.sha256 for chunk in entry.chunks).encode() + b"\n")
        return "sha256:" + total.hexdigest()

    @property
    def chunks(self) -> dict[str, int]:
        """Every chunk it needs, once, with its size."""
        return {chunk.sha256: chunk.size_bytes for entry in self.files for chunk in entry.chunks}


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON."""
    head = manifest.head
    document: dict[str, Json] = {
        "version": VERSION,
        "checkpoint": {
            "namespace": head.ref.namespace,
            "name": head.ref.name,
            "uid": head.ref.uid,
            "podName": head.pod_name,
            "podUID": head.pod_uid,
            "created": head.created,
        },
        "node": {
            "name": head.node.name,
            "kernel": head.node.kernel,
            "arch": head.node.arch,
            "cpuFlagsSha256": head.node.cpu_flags_sha256,
            "engineVersion": head.node.engine_version,
        },
        "containers": [_encode_container(container) for container in head.containers],
        "podTemplate": head.pod_template,
        "files": [
            {
                "path": entry.path,
                "size": entry.size_bytes,
                "mode": entry.mode,
                "chunks": [[chunk.sha256, chunk.size_bytes] for chunk in entry.chunks],
            }
            for entry in sorted(manifest.files, key=lambda each: each.path)
        ],
    }
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def digest(encoded: bytes) -> str:
    """The name of an encoded manifest: ``sha256:`` and hex."""
    return "sha256:" + hashlib.sha256(encoded).hexdigest()


def decode(encoded: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        BadImage: with the field that is wrong.
    """
    if len(encoded) > MAX_MANIFEST_BYTES:
        raise _bad(f"larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = json.loads(encoded.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad(f"no JSON ({error})") from error
    root = _Reader(document, "")
    version = root.integer("version", 0, 1 << 31)
    if version != VERSION:
        raise BadImage(
            f"the manifest has version {version}, this torpor reads version {VERSION}",
            subject="manifest.json",
            remedy="restore with the version of torpor that wrote it, or a newer one",
        )
    about, node = root.child("checkpoint"), root.child("node")
    head = Head(
        ref=CheckpointRef(
            namespace=about.text("namespace"), name=about.text("name"), uid=about.text("uid")
        ),
        pod_name=about.text("podName"),
        pod_uid=about.text("podUID"),
        created=about.text("created"),
        node=NodeFacts(
            name=node.text("name"),
            kernel=node.text("kernel"),
            arch=node.text("arch"),
            cpu_flags_sha256=node.text("cpuFlagsSha256"),
            engine_version=node.text("engineVersion"),
        ),
        containers=tuple(_decode_container(each) for each in root.children("containers")),
        pod_template=root.child("podTemplate").mapping,
    )
    files = tuple(_decode_file(each) for each in root.children("files"))
    _check_paths(files)
    _check_containers(head.containers)
    return Manifest(head=head, files=files)


def check_path(path: str) -> None:
    """Raise BadImage unless ``path`` is plain, relative and stays where it is put."""
    parts = path.split("/")
    if (
        not path
        or len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES
        or "\0" in path
        or any(part in ("", ".", "..") for part in parts)
        or any(0xD800 <= ord(letter) <= 0xDFFF for letter in path)
    ):
        raise _bad(f"path {path!r:.200} leads elsewhere")


class _Reader:
    """Typed access to a JSON object that is not trusted."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _bad(f"{where or 'the document'} is no object")
        self.mapping = cast("dict[str, Json]", value)
        self._where = where

    def _field(self, key: str) -> tuple[Json, str]:
        where = f"{self._where}.{key}".lstrip(".")
        if key not in self.mapping:
            raise _bad(f"{where} is missing")
        return self.mapping[key], where

    def text(self, key: str) -> str:
        value, where = self._field(key)
        if not isinstance(value, str) or len(value) > _MAX_PATH_BYTES:
            raise _bad(f"{where} is no short text")
        return value

    def integer(self, key: str, lowest: int, highest: int) -> int:
        value, where = self._field(key)
        return _integer(value, where, lowest, highest)

    def items(self, key: str) -> Sequence[Json]:
        value, where = self._field(key)
        if not isinstance(value, list) or len(value) > MAX_FILES:
            raise _bad(f"{where} is no list, or too long")
        return value

    def child(self, key: str) -> "_Reader":
        value, where = self._field(key)
        return _Reader(value, where)

    def children(self, key: str) -> "list[_Reader]":
        return [
            _Reader(value, f"{self._where}.{key}[{index}]".lstrip("."))
            for index, value in enumerate(self.items(key))
        ]


def _integer(value: object, where: str, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise _bad(f"{where} is no number between {lowest} and {highest}")
    return value


def _encode_container(container: ContainerFacts) -> Json:
    return {
        "name": container.name,
        "image": container.image,
        "imageID": container.image_id,
        "tasks": container.tasks,
        "memoryBytes": container.memory_bytes,
        "volumes": list(container.volumes),
    }


def _decode_container(reader: _Reader) -> ContainerFacts:
    volumes = reader.items("volumes")
    name = reader.text("name")
    for each in (name, *volumes):
        if not isinstance(each, str) or not _NAME.fullmatch(each) or ".." in each:
            raise _bad(f"{each!r:.80} is no name of a container or volume")
    return ContainerFacts(
        name=name,
        image=reader.text("image"),
        image_id=reader.text("imageID"),
        tasks=reader.integer("tasks", 0, 1 << 31),
        memory_bytes=reader.integer("memoryBytes", 0, MAX_FILE_BYTES),
        volumes=tuple(cast("list[str]", list(volumes))),
    )


def _decode_file(reader: _Reader) -> FileEntry:
    path = reader.text("path")
    check_path(path)
    chunks: list[Chunk] = []
    for value in reader.items("chunks"):
        if not isinstance(value, list) or len(value) != 2:
            raise _bad(f"{path}: a chunk is no pair")
        name, size = value
        if not isinstance(name, str) or not _SHA256.fullmatch(name):
            raise _bad(f"{path}: a chunk has no SHA-256")
        chunks.append(Chunk(sha256=name, size_bytes=_integer(size, path, 1, MAX_CHUNK_BYTES)))
    size_bytes = reader.integer("size", 0, MAX_FILE_BYTES)
    if size_bytes != sum(chunk.size_bytes for chunk in chunks):
        raise _bad(f"{path}: its chunks do not add up to {size_bytes} bytes")
    return FileEntry(
        path=path,
        size_bytes=size_bytes,
        mode=reader.integer("mode", 0, 0o777),
        chunks=tuple(chunks),
    )


def _check_paths(files: Sequence[FileEntry]) -> None:
    """No path twice, and none below another that is a file."""
    names = {entry.path for entry in files}
    if len(names) != len(files):
        raise _bad("a path is listed twice")
    sizes: dict[str, int] = {}
    for entry in files:
        parts = entry.path.split("/")
        if any("/".join(parts[:end]) in names for end in range(1, len(parts))):
            raise _bad(f"{entry.path!r:.200} lies below a file")
        for chunk in entry.chunks:
            if sizes.setdefault(chunk.sha256, chunk.size_bytes) != chunk.size_bytes:
                raise _bad(f"chunk {chunk.sha256} has two sizes")


def _check_containers(containers: Sequence[ContainerFacts]) -> None:
    names = [container.name for container in containers]
    if len(set(names)) != len(names):
        raise _bad("a container is listed twice")


def _bad(cause: str) -> BadImage:
    return BadImage(
        "the manifest cannot be trusted",
        subject="manifest.json",
        cause=cause,
        remedy="take the checkpoint anew; look at the disk of the store",
    )

# SPDX-License-Identifier: Apache-2.0
"""Writes an OCI image archive, as `ctr images import`, podman and skopeo read it."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.image.layers import Blob

TYPES = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(slots=True, kw_only=True)
class Config:
    """What an image says of how its containers run."""

    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)
    workdir: str = "/"
    user: str = ""
    stop_signal: str = ""

    def content(self) -> dict[str, object]:
        """As the image's configuration has it (image-spec, config.md)."""
        found: dict[str, object] = {
            "Env": [f"{name}={value}" for name, value in self.env.items()],
            "Labels": self.labels,
            "Entrypoint": self.entrypoint,
            "Cmd": self.command,
            "ExposedPorts": {port: {} for port in self.ports},
            "WorkingDir": self.workdir,
            "User": self.user,
            "StopSignal": self.stop_signal,
        }
        return {name: value for name, value in found.items() if value}


def write_archive(target: Path, name: str, config: Config, blobs: Sequence[Blob]) -> str:
    """Writes the archive and returns the digest of its manifest.

    Args:
        target: the file.
        name: full name with its tag, such as localhost/torpor:dev.
        config: the image's configuration.
        blobs: its layers, lowest first.
    """
    machine = {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}
    image = _json(
        {
            **machine,
            "config": config.content(),
            "rootfs": {"type": "layers", "diff_ids": [blob.digest for blob in blobs]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{TYPES}.manifest.v1+json",
            "config": _descriptor(f"{TYPES}.config.v1+json", image),
            "layers": [
                {
                    "mediaType": f"{TYPES}.layer.v1.tar",
                    "digest": blob.digest,
                    "size": blob.size_bytes,
                }
                for blob in blobs
            ],
        }
    )
    tag = name.rpartition(":")[2]
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}
    entry = {
        **_descriptor(f"{TYPES}.manifest.v1+json", manifest),
        "platform": machine,
        "annotations": names,
    }
    index = _json({"schemaVersion": 2, "manifests": [entry]})
    with tarfile.open(target, "w") as archive:
        _put(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _put(archive, "index.json", index)
        for text in (manifest, image):
            _put(archive, _blob_path(_digest(text)), text)
        for blob in {blob.digest: blob for blob in blobs}.values():
            member = tarfile.TarInfo(_blob_path(blob.digest))
            member.size, member.mode = blob.size_bytes, 0o644
            with blob.path.open("rb") as content:
                archive.addfile(member, content)
    return _digest(manifest)


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))

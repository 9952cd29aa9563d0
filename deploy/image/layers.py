# SPDX-License-Identifier: Apache-2.0
"""Layers of images: made by a command in an overlay, kept in the cache, turned into tar blobs.

Facts: overlayfs marks what an upper layer deletes by character devices 0/0, and directories that
hide what is below by the attribute trusted.overlay.opaque; OCI layers say the same by files named
.wh.NAME and .wh..wh..opq (image-spec, layer.md).
"""

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.image import cache
from deploy.image.process import CONTAINED, BuildError, require_root, run

OVERLAY_OPTIONS = "redirect_dir=off,metacopy=off,index=off"
# Mounts the layers on $1 with options $2 and runs the command that follows.
WITH_OVERLAY = """
set -e
merged=$1 options=$2; shift 2
mount -t overlay overlay -o "$options" "$merged"
export merged
exec "$@"
"""
# Runs the shell command $2 in folder $1 of the overlay, as root, with the machine's network. What
# downloads need of the machine (names, certificates, pip's settings, a cache) is under
# /run/torpor-build, which is no part of the layer.
RUN = """
set -e
mount -t proc proc "$merged/proc"
mount --rbind /dev "$merged/dev"
mount -t tmpfs tmpfs "$merged/run"
support="$merged/run/torpor-build"
mkdir "$support" "$support/pip-cache" "$support/wheels"
mount --bind "$TORPOR_PIP_CACHE" "$support/pip-cache"
if [ -d "$PIP_FIND_LINKS" ]; then mount --bind "$PIP_FIND_LINKS" "$support/wheels"; fi
unset PIP_FIND_LINKS PIP_CERT PIP_CONFIG_FILE
for x in /etc/resolv.conf /etc/hosts; do
    if [ -e "$x" ] && [ -e "$merged$x" ]; then mount --bind "$x" "$merged$x"; fi
done
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    cp /etc/ssl/certs/ca-certificates.crt "$support/ca.crt"
    export PIP_CERT=/run/torpor-build/ca.crt SSL_CERT_FILE=/run/torpor-build/ca.crt
fi
export PIP_FIND_LINKS=/run/torpor-build/wheels PIP_CACHE_DIR=/run/torpor-build/pip-cache
export DEBIAN_FRONTEND=noninteractive HOME=/root
exec chroot "$merged" /bin/sh -c 'cd "$1" && exec /bin/sh -c "$2"' sh "$1" "$2"
"""
# Copies $2 (a directory: its content) of the tree $1 to $3 in the overlay.
COPY = """
set -e
target="$merged$3"
if [ -d "$1$2" ]; then mkdir -p "$target"; cp -a "$1$2/." "$target"
else case $3 in
    */) mkdir -p "$target"; cp -a "$1$2" "$target" ;;
    *) mkdir -p "$(dirname "$target")"; cp -a "$1$2" "$target" ;;
esac; fi
"""
LONGEST_SHOWN = 90
KEPT_ATTRIBUTES = ("security.capability",)
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL",
             "PIP_FIND_LINKS", "PIP_DEFAULT_TIMEOUT")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer: the key of how it came to be, and the directory of its files."""

    key: str
    tree: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A layer as it is in an archive: an uncompressed tar, named by its digest."""

    path: Path
    digest: str
    size_bytes: int


def run_layer(
    below: Sequence[Layer], command: str, env: dict[str, str], folder: str,
    say: Callable[[str], None],
) -> Layer:  # fmt: skip
    """The layer that a shell command makes on top of others; what takes time is announced."""
    inputs = {"below": _key(below), "run": command, "env": env, "folder": folder}
    pip_cache = cache.home() / "pip"
    pip_cache.mkdir(parents=True, exist_ok=True)
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    full = {"PATH": _path(env), **passed, **env, "TORPOR_PIP_CACHE": str(pip_cache)}
    if not cache.entry_path("layer", inputs).exists():
        say(f"  RUN {_short(command)}")
    return _layer(below, inputs, ["sh", "-c", RUN, "sh", folder, command], full, f"RUN {command}")


def copy_layer(below: Sequence[Layer], tree: Path, source: str, destination: str) -> Layer:
    """The layer that a copy of a directory's content, or of a file, makes on top of others.

    Args:
        below: the layers under it.
        tree: directory that the source is in.
        source: path in that directory, with a leading slash.
        destination: path in the image.
    """
    inputs = {"below": _key(below), "copy": digest_of_tree(tree), "to": destination, "of": source}
    command = ["sh", "-c", COPY, "sh", str(tree), source, destination]
    return _layer(below, inputs, command, {"PATH": _path({})}, f"COPY {destination}")


def copy_from_layers(
    below: Sequence[Layer], others: Sequence[Layer], source: str, destination: str
) -> Layer:
    """The same for a path in another stage, whose layers are given."""
    inputs = {"below": _key(below), "from": _key(others), "of": source, "to": destination}
    mount = 'o=$4; m=$5; mount -t overlay overlay -o "$o" "$m"; set -- "$m" "$2" "$3"\n' + COPY

    def command(partial: Path) -> list[str]:
        (partial / "other").mkdir()
        options = f"lowerdir={_lower(others, partial / 'none')}"
        other = str(partial / "other")
        return ["sh", "-c", mount, "sh", "", source, destination, options, other]

    return _layer_by(below, inputs, command, {"PATH": _path({})}, f"COPY --from {source}")


def blob(layer: Layer) -> Blob:
    """The layer's tar, made if it is not in the cache."""

    def build(partial: Path) -> None:
        partial.mkdir()
        with (partial / "layer.tar").open("wb") as output:
            hashed = _Hashed(output)
            write_tar(layer.tree, hashed)
        (partial / "digest").write_text(f"sha256:{hashed.total.hexdigest()}")

    path = cache.entry("blob", {"layer": layer.key}, build)
    tar = path / "layer.tar"
    return Blob(path=tar, digest=(path / "digest").read_text(), size_bytes=tar.stat().st_size)


def write_tar(tree: Path, output: "_Hashed | io.BufferedIOBase") -> None:
    """Writes the tree as an OCI layer."""
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for folder, folders, files in os.walk(tree):
            folders.sort()
            for name in sorted([*folders, *files]):
                _add(archive, tree, Path(folder) / name)


def digest_of_tree(tree: Path) -> str:
    """A digest of names, modes and contents below a directory (times do not count)."""
    total = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        mode = path.lstat().st_mode
        total.update(f"{path.relative_to(tree)}\0{mode}\0".encode())
        if stat.S_ISLNK(mode):
            total.update(os.readlink(path).encode())
        elif stat.S_ISREG(mode):
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


class _Hashed:
    """A writer that hashes what passes."""

    def __init__(self, output: io.BufferedIOBase | io.BufferedWriter) -> None:
        self.total = hashlib.sha256()
        self._output = output

    def write(self, data: bytes) -> int:
        self.total.update(data)
        return self._output.write(data)

    def tell(self) -> int:
        return self._output.tell()


def _layer(
    below: Sequence[Layer], inputs: Mapping[str, object], command: list[str], env: dict[str, str],
    what: str,
) -> Layer:  # fmt: skip
    return _layer_by(below, inputs, lambda _: command, env, what)


def _layer_by(
    below: Sequence[Layer], inputs: Mapping[str, object], command: Callable[[Path], list[str]],
    env: dict[str, str], what: str,
) -> Layer:  # fmt: skip
    def build(partial: Path) -> None:
        require_root("building an image")
        for name in ("tree", "work", "merged", "none"):
            (partial / name).mkdir(parents=True)
        (partial / "tree").chmod(0o755)
        lower = _lower(below, partial / "none")
        places = f"lowerdir={lower},upperdir={partial / 'tree'},workdir={partial / 'work'}"
        overlay: list[str | Path] = [partial / "merged", f"{places},{OVERLAY_OPTIONS}"]
        argv: list[str | Path] = [
            *CONTAINED,
            "sh",
            "-c",
            WITH_OVERLAY,
            "sh",
            *overlay,
            *command(partial),
        ]
        run(argv, what=_short(what), env=env)
        for name in ("work", "merged", "none", "other"):
            cache.remove(partial / name)

    path = cache.entry("layer", inputs, build)
    return Layer(key=path.name, tree=path / "tree")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."


def _lower(layers: Sequence[Layer], none: Path) -> str:
    """The option's value, topmost first; overlayfs wants at least two, so an empty one is added."""
    none.mkdir(exist_ok=True)
    value = ":".join([str(layer.tree) for layer in reversed(layers)] + [str(none)])
    if len(value) > 3500:
        raise BuildError("too many layers for one mount", "", "join RUN instructions")
    return value


def _key(layers: Sequence[Layer]) -> list[str]:
    return [layer.key for layer in layers]


def _path(env: dict[str, str]) -> str:
    return env.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


def _add(archive: tarfile.TarFile, tree: Path, path: Path) -> None:
    name = str(path.relative_to(tree))
    status = path.lstat()
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        _add_mark(archive, Path(name).parent / f".wh.{path.name}")
        return
    if stat.S_ISSOCK(status.st_mode):
        return
    member = archive.gettarinfo(str(path), arcname=name)
    member.uname = member.gname = ""
    headers: dict[str, str] = {}
    names = [] if path.is_symlink() else os.listxattr(path, follow_symlinks=False)
    for attribute in names:
        if attribute in KEPT_ATTRIBUTES:
            value = os.getxattr(path, attribute, follow_symlinks=False)
            text = value.decode("utf-8", "surrogateescape")
            headers[f"SCHILY.xattr.{attribute}"] = text
    member.pax_headers = headers
    if member.isreg():
        with path.open("rb") as content:
            archive.addfile(member, content)
    else:
        archive.addfile(member)
    if member.isdir() and "trusted.overlay.opaque" in names:
        _add_mark(archive, Path(name) / ".wh..wh..opq")


def _add_mark(archive: tarfile.TarFile, name: Path) -> None:
    archive.addfile(tarfile.TarInfo(str(name)))

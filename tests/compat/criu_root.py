# SPDX-License-Identifier: Apache-2.0
"""Debian sid's CRIU as a black box: unpacked into a cache, run on the host's namespaces.

Nothing is installed. The packages are fetched by apt with directories of its own, checked by
apt's signatures, and only unpacked; programs start through the root's own loader with its own
libraries, so they see the host's `/` and run as the host's root, as CRIU must.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SUITE = "sid"
PACKAGES = ("criu", "python3-pycriu")
LAYOUT = 1  # raise when the way the root is built changes
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "TORPOR_DEBIAN_MIRROR"

Programs = Callable[[Path, Path], dict[str, str]]


class Unavailable(RuntimeError):
    """The root cannot be made here; the text says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriuRoot:
    """An unpacked root; `path/bin` holds programs that can be called from anywhere."""

    path: Path

    def criu(self, *arguments: str) -> list[str]:
        """Argument vector of CRIU."""
        return [str(self.path / "bin" / "criu"), *arguments]

    def crit(self, *arguments: str) -> list[str]:
        """Argument vector of crit, CRIU's own decoder."""
        return [str(self.path / "bin" / "crit"), *arguments]

    def python(self, *arguments: str) -> list[str]:
        """Argument vector of the Python that has pycriu."""
        return [str(self.path / "bin" / "python3"), *arguments]


def criu_root() -> CriuRoot:
    """Return the cached root, after building it if it is not there yet.

    Raises: Unavailable when apt cannot fetch the packages.
    """
    return CriuRoot(path=_built("criu", PACKAGES, _programs))


def iptables_folder() -> Path:
    """A folder for PATH with iptables and ip6tables, which criu and we call.

    Raises: Unavailable when apt cannot fetch the package.
    """
    return _built("iptables", ("iptables",), _rule_programs) / "bin"


def _built(what: str, packages: tuple[str, ...], programs: Programs) -> Path:
    key = hashlib.sha256(repr((SUITE, packages, LAYOUT)).encode()).hexdigest()[:12]
    place = cache() / f"{what}-{SUITE}-{key}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=place.parent, prefix="incomplete-") as scratch:
                root = Path(scratch) / "root"
                _unpack(_download(Path(scratch) / "apt", packages), root)
                _write_programs(root, programs(root, place))
                root.rename(place)
    return place


def cache() -> Path:
    """Folder of everything that tests keep between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORPOR_CACHE") or Path(base) / "torpor")


def _download(apt: Path, packages: tuple[str, ...]) -> list[Path]:
    """Fetch the packages and all they depend on."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise Unavailable(f"{tool} is not installed")
    for folder in ("state/lists/partial", "cache/archives/partial", "preferences.d"):
        (apt / folder).mkdir(parents=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {SUITE} main\n")
    options = {
        "Dir::State": apt / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": apt / "preferences.d",
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Languages": "none",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        # an unpacked root needs what the programs link with, not a bootable system
        "pkgCacheFile::ForceEssential": "none",
        "pkgCacheFile::ForceImportant": "none",
    }
    command = ["apt-get", "-q", "-y"]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    _run([*command, "update"])
    _run([*command, "install", "--download-only", *packages])
    return sorted((apt / "cache" / "archives").glob("*.deb"))


def _mirror() -> str:
    """The Debian archive this machine already uses."""
    if mirror := os.environ.get(MIRROR_VARIABLE):
        return mirror
    listing = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    for line in listing.splitlines():
        if line.rstrip("/").endswith("/debian"):
            return line
    raise Unavailable(f"no Debian archive in apt's sources; set {MIRROR_VARIABLE}")


def _unpack(packages: list[Path], root: Path) -> None:
    root.mkdir()
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(root)])


def _loader(root: Path, place: Path) -> str:
    loader = _only(root, "usr/lib*/ld-linux-*.so.*").relative_to(root)
    libraries = _only(root, "usr/lib/*-linux-gnu").relative_to(root)
    return f'exec "{place / loader}" --library-path "{place / libraries}"'


def _rule_programs(root: Path, place: Path) -> dict[str, str]:
    plugins = place / _only(root, "usr/lib/*-linux-gnu/xtables").relative_to(root)
    start, program = _loader(root, place), place / "usr/sbin/xtables-nft-multi"
    return {
        name: f'XTABLES_LIBDIR="{plugins}" {start} --argv0 {name} "{program}"'
        for name in ("iptables", "ip6tables")
    }


def _programs(root: Path, place: Path) -> dict[str, str]:
    start = _loader(root, place)
    home = f'PYTHONHOME="{place}/usr" PYTHONPATH="{place}/usr/lib/python3/dist-packages"'
    python = f'{home} {start} "{place}/usr/bin/python3" -W ignore'
    return {
        "criu": f'{start} "{place}/usr/sbin/criu"',
        "crit": f'{python} "{place}/usr/bin/crit"',
        "python3": python,
    }


def _write_programs(root: Path, programs: dict[str, str]) -> None:
    """Small scripts that start a program of the root with the root's loader."""
    (root / "bin").mkdir(exist_ok=True)
    for name, command in programs.items():
        script = root / "bin" / name
        script.write_text(f'#!/bin/sh\n{command} "$@"\n')
        script.chmod(0o755)


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        raise Unavailable(f"{SUITE}'s packages hold {len(found)} files like {pattern}, not one")
    return found[0]


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Unavailable(f"{' '.join(command[:1])}: {result.stderr.strip()}")
    return result.stdout

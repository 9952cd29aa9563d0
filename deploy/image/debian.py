# SPDX-License-Identifier: Apache-2.0
"""Debian roots made by mmdebstrap, and cached: no daemon, no registry."""

import os
from collections.abc import Sequence
from pathlib import Path

from deploy.image import cache
from deploy.image.process import CONTAINED, install_missing, require_root, run

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Left out of every root: nothing in a container or on a test node reads them.
EXCLUDED = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/lintian/*", "/usr/share/bug/*",
)  # fmt: skip
INCLUDED = ("/usr/share/doc/*/copyright",)
EPOCH = 1  # raise it to have every cached root made anew


def mirror() -> str:
    """The Debian mirror: TORPOR_DEBIAN_MIRROR, or else Debian's own."""
    return os.environ.get("TORPOR_DEBIAN_MIRROR", "http://deb.debian.org/debian")


def root_inputs(
    suite: str, packages: Sequence[str], hooks: Sequence[str] = ()
) -> dict[str, object]:
    """What a root depends on, which is its key in the cache."""
    return {
        "suite": suite, "packages": sorted(packages), "hooks": list(hooks),
        "excluded": EXCLUDED, "epoch": EPOCH,
    }  # fmt: skip


def make_root(target: Path, suite: str, packages: Sequence[str], hooks: Sequence[str] = ()) -> None:
    """Makes a root with the essential packages and those named.

    Args:
        target: directory to make.
        suite: Debian's name of the release, such as trixie.
        packages: what is installed in addition to the essential packages.
        hooks: shell commands run at the end, with the root's path as $1.
    """
    require_root("making a Debian root")
    install_missing({"mmdebstrap": "mmdebstrap"}, {KEYRING: "debian-archive-keyring"})
    command: list[str | Path] = [
        *CONTAINED, "mmdebstrap", "--quiet", "--mode=root", "--variant=essential",
        "--format=directory", f"--keyring={KEYRING}",
        # The mirror may be a frozen one, and the machine's clock past its Release file's validity.
        '--aptopt=Acquire::Check-Valid-Until "false"', "--aptopt=Acquire::Languages none",
        *(f"--dpkgopt=path-exclude={path}" for path in EXCLUDED),
        *(f"--dpkgopt=path-include={path}" for path in INCLUDED),
        *(f"--customize-hook={hook}" for hook in hooks),
    ]  # fmt: skip
    if packages:
        command.append(f"--include={','.join(packages)}")
    run([*command, suite, target, mirror()], what=f"mmdebstrap {suite}", env=_environment())


def root(suite: str, packages: Sequence[str], hooks: Sequence[str] = ()) -> Path:
    """A cached root with these packages."""
    return cache.entry(
        f"root-{suite}",
        root_inputs(suite, packages, hooks),
        lambda target: make_root(target, suite, packages, hooks),
    )


def _environment() -> dict[str, str]:
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        **proxies,
    }

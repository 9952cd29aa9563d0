# SPDX-License-Identifier: Apache-2.0
"""Compiles Kubernetes and helm from the Go module beside this file, once, into the cache."""

import os
import re
import shutil
from pathlib import Path

from deploy.image import cache, debian
from deploy.image.process import CONTAINED, BuildError, run
from deploy.image.progress import Progress

MODULE = Path(__file__).parent
SOURCES = (MODULE / "go.mod", MODULE / "go.sum", MODULE / "main.go")
HELM = "helm.sh/helm/v3/cmd/helm"
PROGRAMS = (
    "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl",
    "kubelet",
)  # fmt: skip
OLDEST_GO = (1, 24)
USUAL_PLACES = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")
# Runs a Go of a Debian root on the module ($2) and the cache's directories ($3), with the
# machine's names and certificates, in a mount namespace that ends with it.
IN_ROOT = """
set -e
root=$1 module=$2 cache=$3; shift 3
mount -t tmpfs tmpfs "$root/mnt"
mkdir "$root/mnt/module" "$root/mnt/cache"
mount --bind "$module" "$root/mnt/module"
mount --bind "$cache" "$root/mnt/cache"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
for x in /etc/resolv.conf /etc/hosts /etc/ssl/certs; do
    if [ -e "$x" ] && [ -e "$root$x" ]; then mount --bind "$x" "$root$x"; fi
done
exec chroot "$root" sh -c 'cd /mnt/module && exec "$@"' sh "$@"
"""


def kubernetes_version() -> str:
    """The version that go.mod requires, such as 1.34.4."""
    return _version_of("k8s.io/kubernetes")


def helm_version() -> str:
    """The version of helm that go.mod requires."""
    return _version_of("helm.sh/helm/v3")


def programs(progress: Progress) -> Path:
    """A directory with kubectl, helm and the cluster's own programs, compiled if need be."""
    inputs = {"module": cache.digest_of(*SOURCES), "flags": _flags()}
    return cache.entry("kubernetes", inputs, lambda target: _build(target, progress))


def _version_of(module: str) -> str:
    found = re.search(rf"^\s*{re.escape(module)} v(\S+)", SOURCES[0].read_text(), re.MULTILINE)
    if not found:
        raise BuildError(f"go.mod does not name {module}")
    return found.group(1)


def _flags() -> list[str]:
    version = kubernetes_version()
    major, minor, _ = version.split(".", 2)
    base = "k8s.io/component-base/version"
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    stamps = " ".join(f"-X {base}.{name}={value}" for name, value in values.items())
    helm = f"-X helm.sh/helm/v3/internal/version.version=v{helm_version()}"
    return ["-trimpath", "-mod=readonly", "-ldflags", f"-s -w {stamps} {helm}"]


def _build(target: Path, progress: Progress) -> None:
    go_cache = cache.home() / "go"
    go_cache.mkdir(parents=True, exist_ok=True)
    output = go_cache / target.name
    cache.remove(output)
    output.mkdir()
    try:
        _compile(go_cache, output, progress)
        (output / "cluster").rename(output / "kube")
        for name in PROGRAMS:
            (output / name).symlink_to("kube")
        output.rename(target)
    finally:
        cache.remove(output)
    # Modules and compiled packages are thirty times the result, and wanted again once a year.
    cache.remove(go_cache)


def _compile(go_cache: Path, output: Path, progress: Progress) -> None:
    version = kubernetes_version()
    go = _machine_go()
    with progress.long(
        f"compiling Kubernetes {version} and helm {helm_version()} (once, 5 to 10 minutes)",
        f"Kubernetes {version} compiled",
    ):
        if go:
            arguments = ["build", *_flags(), "-o", f"{output}/", ".", HELM]
            run(
                [*CONTAINED, go, *arguments],
                what="go build",
                cwd=MODULE,
                env=_environment(go_cache),
            )
        else:
            _build_in_root(go_cache, output)


def _build_in_root(go_cache: Path, output: Path) -> None:
    root = debian.root("trixie", ["golang-go", "ca-certificates"])
    inside = Path("/mnt/cache")
    env = {**_environment(inside), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    arguments = ["go", "build", *_flags(), "-o", f"{inside / output.name}/", ".", HELM]
    command: list[str | Path] = [
        *CONTAINED,
        "sh",
        "-c",
        IN_ROOT,
        "sh",
        root,
        MODULE,
        go_cache,
        *arguments,
    ]
    run(command, what="go build in a Debian root", env=env)


def _environment(go_cache: Path) -> dict[str, str]:
    """The caller's environment (proxies, mirrors), with nothing that changes the result."""
    kept = {name: value for name, value in os.environ.items() if name != "GOFLAGS"}
    return {
        **kept,
        "GOMODCACHE": str(go_cache / "mod"),
        "GOCACHE": str(go_cache / "build"),
        "GOFLAGS": "-buildvcs=false -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }


def _machine_go() -> str | None:
    """A Go of the machine that is new enough; TORPOR_GO names one, or `debian` for none."""
    chosen = os.environ.get("TORPOR_GO")
    if chosen == "debian":
        return None
    for candidate in (chosen or shutil.which("go"), *USUAL_PLACES):
        if candidate and Path(candidate).exists():
            env = {**os.environ, "GOTOOLCHAIN": "local"}
            words = run([candidate, "version"], env=env, cwd=Path("/")).split()
            found = re.match(r"go(\d+)\.(\d+)", words[2])
            if found and (int(found[1]), int(found[2])) >= OLDEST_GO:
                return candidate
    return None

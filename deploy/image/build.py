# SPDX-License-Identifier: Apache-2.0
"""Builds an image from its Dockerfile without a daemon or a registry.

The only base images are `scratch` and Debian's slim ones, which mmdebstrap makes from Debian's
packages. Every RUN and COPY is a layer in the cache, under a key of all that it is made from.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.image import cache, debian, dockerfile, layers, oci
from deploy.image.dockerfile import Instruction, Stage
from deploy.image.layers import Layer
from deploy.image.process import BuildError
from deploy.image.progress import Progress

BASE_IMAGES = {"debian:trixie-slim": "trixie", "debian:sid-slim": "sid"}
BASE_PACKAGES = ("apt", "tzdata")
APT_SETTINGS = """\
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Keep-Downloaded-Packages "false";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };
"""
BASE_HOOKS = (
    # apt's caches would be half of each image: settings like those of Docker's Debian images.
    f"printf %s '{APT_SETTINGS}' > \"$1/etc/apt/apt.conf.d/80image\"",
    # Services are not started in an image that is being built; names are the container's own.
    'p="$1/usr/sbin/policy-rc.d"; printf "#!/bin/sh\\nexit 101\\n" > "$p"; chmod +x "$p"',
    'for x in resolv.conf hostname hosts; do : > "$1/etc/$x"; done',
    'rm -rf "$1"/var/cache/apt/*.bin "$1"/var/lib/apt/lists/* "$1"/var/log/*.log',
)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CACHED_LAYERS_BYTES = 8 * 2**30


@dataclass(slots=True, kw_only=True)
class _Built:
    """A stage as far as it is built."""

    layers: list[Layer] = field(default_factory=list)
    config: oci.Config = field(default_factory=oci.Config)


def build_image(file: Path, context: Path, name: str, progress: Progress) -> Path:
    """Builds the last stage of a Dockerfile; returns its archive in the cache.

    Args:
        file: the Dockerfile.
        context: directory that COPY takes from; its .dockerignore counts.
        name: the image's full name with its tag.
        progress: told of each step that is not in the cache.
    """
    stages = dockerfile.parse(file.read_text())
    ignore_file = context / ".dockerignore"
    ignored = dockerfile.Ignore(ignore_file.read_text() if ignore_file.exists() else "")
    built: dict[str, _Built] = {}
    for stage in _needed(stages):
        built[stage.name] = _Builder(context, ignored, built, progress).stage(stage)
    final = built[stages[-1].name]
    inputs = {
        "name": name,
        "layers": [layer.key for layer in final.layers],
        "config": final.config.content(),
    }

    def write(target: Path) -> None:
        blobs = [layers.blob(layer) for layer in final.layers]
        oci.write_archive(target, name, final.config, blobs)

    archive = cache.entry("image", inputs, write)
    cache.prune(("layer", "blob", "image"), CACHED_LAYERS_BYTES)
    return archive


class _Builder:
    """Builds one stage."""

    def __init__(
        self, context: Path, ignored: dockerfile.Ignore, built: dict[str, _Built],
        progress: Progress,
    ) -> None:  # fmt: skip
        self._context = context
        self._ignored = ignored
        self._built = built
        self._progress = progress
        self._steps = {"RUN": self._run, "COPY": self._copy}

    def stage(self, stage: Stage) -> _Built:
        """The stage with all of its layers."""
        state = self._begin(stage.base)
        for instruction in stage.instructions:
            step = self._steps.get(instruction.word)
            if step:
                state.layers.append(step(state, instruction))
            else:
                _configure(state.config, instruction)
        return state

    def _begin(self, base: str) -> _Built:
        if base in self._built:
            parent = self._built[base]
            config = oci.Config(
                env=dict(parent.config.env),
                workdir=parent.config.workdir,
                user=parent.config.user,
            )
            return _Built(layers=list(parent.layers), config=config)
        config = oci.Config(env={"PATH": DEFAULT_PATH})
        if base == "scratch":
            return _Built(config=config)
        if base not in BASE_IMAGES:
            known = ", ".join(["scratch", *BASE_IMAGES])
            raise BuildError(f"FROM {base}: only {known} can be made here")
        suite = BASE_IMAGES[base]
        inputs = debian.root_inputs(suite, BASE_PACKAGES, BASE_HOOKS)
        if not cache.entry_path(f"root-{suite}", inputs).exists():
            self._progress.say(f"making the base {base} from Debian's packages")
        root = debian.root(suite, BASE_PACKAGES, BASE_HOOKS)
        return _Built(layers=[Layer(key=root.name, tree=root)], config=config)

    def _run(self, state: _Built, instruction: Instruction) -> Layer:
        if state.config.user:
            raise BuildError(f"line {instruction.line}: RUN after USER is not known here")
        config = state.config
        return layers.run_layer(
            state.layers, instruction.text, dict(config.env), config.workdir, self._progress.say
        )

    def _copy(self, state: _Built, instruction: Instruction) -> Layer:
        copy = dockerfile.parse_copy(instruction)
        destination = str(Path(state.config.workdir) / copy.destination)
        if copy.destination.endswith("/"):
            destination = destination.rstrip("/") + "/"
        if copy.stage:
            if copy.stage not in self._built or len(copy.sources) != 1:
                raise BuildError(f"line {instruction.line}: cannot copy {instruction.text}")
            others = self._built[copy.stage].layers
            return layers.copy_from_layers(state.layers, others, copy.sources[0], destination)
        with tempfile.TemporaryDirectory() as name:
            staged = Path(name)
            for source in copy.sources:
                self._stage_files(staged, source)
            if len(copy.sources) == 1 and (self._context / copy.sources[0]).is_file():
                only = f"/{Path(copy.sources[0]).name}"
                return layers.copy_layer(state.layers, staged, only, destination)
            return layers.copy_layer(state.layers, staged, "", destination)

    def _stage_files(self, staged: Path, source: str) -> None:
        """Copies what a COPY takes to a directory, with modes that do not depend on the umask."""
        top = self._context / source
        for file in dockerfile.context_files(self._context, source, self._ignored):
            target = staged / (file.name if top.is_file() else file.relative_to(top))
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.is_symlink():
                target.symlink_to(file.readlink())
                continue
            target.write_bytes(file.read_bytes())
            target.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        for folder in (staged, *(path for path in staged.rglob("*") if path.is_dir())):
            folder.chmod(0o755)


def _configure(config: oci.Config, instruction: Instruction) -> None:
    match instruction.word:
        case "ENV":
            config.env.update(instruction.pairs())
        case "LABEL":
            config.labels.update(instruction.pairs())
        case "WORKDIR":
            config.workdir = str(Path(config.workdir) / instruction.text)
        case "USER":
            config.user = instruction.text
        case "ENTRYPOINT":
            config.entrypoint = instruction.argv()
        case "CMD":
            config.command = instruction.argv()
        case "STOPSIGNAL":
            config.stop_signal = instruction.text
        case "EXPOSE":
            config.ports.extend(instruction.text.split())
        case _:
            raise BuildError(f"line {instruction.line}: {instruction.word} is not known here")


def _needed(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that the last one needs, in order."""
    by_name = {stage.name: stage for stage in stages}
    wanted = {stages[-1].name}
    for stage in reversed(stages):
        if stage.name in wanted:
            copies = [i for i in stage.instructions if i.word == "COPY"]
            wanted |= {dockerfile.parse_copy(copy).stage for copy in copies} | {stage.base}
    return [stage for name, stage in by_name.items() if name in wanted]

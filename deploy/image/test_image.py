# SPDX-License-Identifier: Apache-2.0
"""torpor's own image: the Dockerfile is what is built, and it takes all that the package needs."""

import re
import tomllib
from pathlib import Path

import pytest

from deploy.image import dockerfile
from deploy.image.build import BASE_IMAGES, _configure, oci
from deploy.image.dockerfile import Ignore, context_files, parse, parse_copy

ROOT = Path(__file__).resolve().parents[2]
STAGES = parse((ROOT / "Dockerfile").read_text())
IGNORED = Ignore((ROOT / ".dockerignore").read_text())


def copied():
    """The files that go into the build, relative to the checkout."""
    found = set()
    for stage in STAGES:
        for instruction in stage.instructions:
            if instruction.word == "COPY" and not (copy := parse_copy(instruction)).stage:
                for source in copy.sources:
                    files = context_files(ROOT, source, IGNORED)
                    found |= {str(file.relative_to(ROOT)) for file in files}
    return found


def test_every_base_can_be_made_without_a_registry():
    names = {stage.name for stage in STAGES}
    assert {stage.base for stage in STAGES} - names <= {"scratch", *BASE_IMAGES}


def test_every_source_of_the_package_is_copied():
    """Modules, schema files and native sources: none is left out."""
    wanted = {"pyproject.toml", "setup.py", "requirements/runtime.txt", "requirements/build.txt"}
    for part in ("engine", "plugin", "native"):
        for path in (ROOT / part).rglob("*"):
            source = path.suffix in {".py", ".proto", ".c", ".h", ".S", ".lds"}
            generated = "_pb2" in path.name or path.name == "_native.c"
            test = path.name.startswith("test_") or path.name == "conftest.py"
            if source and not generated and not test and "__pycache__" not in path.parts:
                wanted.add(str(path.relative_to(ROOT)))
    assert wanted <= copied()


def test_nothing_else_is_copied():
    strangers = [
        name
        for name in copied()
        if re.search(r"\.(so|o|bin|pyc)$|_pb2|(^|/)(test_|conftest|\.git|build/)", name)
    ]
    assert not strangers


def test_what_setup_imports_is_copied():
    """setup.py imports its helpers from the checkout; each of them is in the context."""
    text = (ROOT / "setup.py").read_text()
    modules = re.findall(r"^\s*from ((?:native|tools)[\w.]*) import", text, re.MULTILINE)
    assert modules
    for module in modules:
        assert f"{module.replace('.', '/')}.py" in copied()


def test_readme_and_licence_of_the_package_are_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied()


def test_final_stage_holds_no_compiler():
    """The final stage begins from the runtime's stage, and only copies the environment."""
    final = STAGES[-1]
    base = next(stage for stage in STAGES if stage.name == final.base)
    assert not any("gcc" in i.text for i in (*base.instructions, *final.instructions))
    assert not [i for i in final.instructions if i.word == "RUN"]


def test_image_does_not_run_as_root():
    config = oci.Config()
    for instruction in STAGES[-1].instructions:
        if instruction.word not in {"RUN", "COPY"}:
            _configure(config, instruction)
    assert config.user == "65532:65532"
    assert config.entrypoint == ["torpor"]
    assert config.env["PATH"].startswith("/opt/torpor/app/bin:")


def test_static_programs_are_on_the_path():
    """Pods name them as commands, and must not know where Python keeps its files."""
    copies = [parse_copy(i) for i in STAGES[-1].instructions if i.word == "COPY"]
    names = {Path(c.sources[0]).name for c in copies if c.destination == "/usr/local/bin/"}
    assert names == {"torpor-placeholder", "torpor-pidhelper", "torpor-hook"}


@pytest.mark.parametrize("word", ["ADD", "ARG", "SHELL", "HEALTHCHECK"])
def test_the_builder_knows_every_word_of_the_dockerfile(word):
    """A word that the builder would have to guess at is refused, not skipped."""
    assert word not in dockerfile.SUPPORTED
    assert {i.word for s in STAGES for i in s.instructions} <= set(dockerfile.SUPPORTED)

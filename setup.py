# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the C parts, the generated protocol modules, the packages.

`build` gains two sub-commands: `build_blobs` compiles the executor and the static programs
into engine/blobs, `build_protos` generates the *_pb2 modules. Both write beside the sources
for an editable install, and into the build tree otherwise.
"""

import sys
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))


def packages() -> list[str]:
    found = []
    for part in ("engine", "plugin"):
        found.append(f"torpor.{part}")
        found += [f"torpor.{part}.{name}" for name in find_packages(part)]
    return found


class WithoutTests(build_py):
    """Leaves tests out of the wheel."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return [m for m in modules if not m[1].startswith("test_") and m[1] != "conftest"]


class Generated(Command):
    """A sub-command of build that follows setuptools' protocol for editable installs."""

    user_options = ()
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def base(self) -> Path:
        return ROOT if self.editable_mode else Path(self.build_lib) / "torpor"

    def get_source_files(self):
        return []

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class BuildBlobs(Generated):
    """Compiles the executor and the static programs."""

    def run(self):
        from native.build import build_all

        build_all(self.base() / "engine" / "blobs")


class BuildProtos(Generated):
    """Generates the protobuf modules."""

    def run(self):
        from tools.protos import generate

        generate(self.base())


build.sub_commands = [*build.sub_commands, ("build_blobs", None), ("build_protos", None)]

setup(
    packages=packages(),
    cffi_modules=["native/seam/build_cffi.py:ffi"],
    cmdclass={"build_py": WithoutTests, "build_blobs": BuildBlobs, "build_protos": BuildProtos},
)

# SPDX-License-Identifier: Apache-2.0
"""The cffi module torpor.engine._native: declarations from seam.h, code from native/seam.

setup.py names `ffi`; paths are relative to the root of the tree, where it runs.
"""

import re
from pathlib import Path

from cffi import FFI

SEAM = Path(__file__).resolve().parent
INCLUDE = SEAM.parent / "include"
ROOT = SEAM.parent.parent
FLAGS = ("-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-pthread")


def declarations() -> str:
    """seam.h without what only a preprocessor understands."""
    text = (INCLUDE / "torpor" / "seam.h").read_text(encoding="utf-8")
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "torpor.engine._native",
    '#include "torpor/seam.h"',
    sources=[str(path.relative_to(ROOT)) for path in sorted(SEAM.glob("*.c"))],
    depends=[str(path.relative_to(ROOT)) for path in sorted(SEAM.glob("*.h"))]
    + ["native/include/torpor/seam.h"],
    include_dirs=["native/include"],
    extra_compile_args=list(FLAGS),
    extra_link_args=["-pthread"],
)

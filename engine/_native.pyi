# SPDX-License-Identifier: Apache-2.0
"""Types of the cffi module that native/seam/build_cffi.py describes."""

from typing import Any

ffi: Any
lib: Any

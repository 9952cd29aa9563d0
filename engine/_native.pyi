# SPDX-License-Identifier: Apache-2.0
"""Types of the cffi module that native/seam/build_cffi.py describes."""

from collections.abc import Callable
from typing import Any

class _Lib:
    def __getattr__(self, name: str) -> Callable[..., int]: ...

ffi: Any
lib: _Lib

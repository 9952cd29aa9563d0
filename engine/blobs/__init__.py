# SPDX-License-Identifier: Apache-2.0
"""Programs built from native/: the executor and the static helpers."""

from pathlib import Path


def program(name: str) -> Path:
    """Where one of them is (importlib.resources takes 5 ms to say the same)."""
    return Path(__file__).with_name(name)

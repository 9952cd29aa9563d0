# SPDX-License-Identifier: Apache-2.0
"""`--inherit-fd fd[N]:NAME`: a descriptor of the caller that stands for one of the tree."""

import re

_OPTION = re.compile(r"fd\[(\d+)\]:(.+)")
_CRIU_NAME = re.compile(r"(pipe|socket)\[(\d+)\]")


def parse_inherit(text: str) -> tuple[str, int]:
    """(name, descriptor). Raises ValueError."""
    match = _OPTION.fullmatch(text)
    if match is None:
        raise ValueError(f"not of the form fd[N]:NAME: {text}")
    return normal_name(match[2]), int(match[1])


def normal_name(text: str) -> str:
    """CRIU writes `pipe[123]`, the kernel `pipe:[123]`; the engine takes the kernel's."""
    match = _CRIU_NAME.fullmatch(text)
    return f"{match[1]}:[{match[2]}]" if match else text

# SPDX-License-Identifier: Apache-2.0
"""Where the commands print: JSON, plain lines, or lines with colour when stdout is a terminal."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from torpor.engine.inspect.lines import Line, plain


def emit_json(value: Any) -> None:  # noqa: ANN401
    """One JSON object, from dataclasses, mappings and paths."""
    print(json.dumps(jsonable(value), indent=2))


def emit_lines(lines: Iterable[Line]) -> None:
    """The lines; rich is loaded only when stdout is a terminal."""
    if not sys.stdout.isatty():
        for line in lines:
            print(plain(line))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(Text.assemble(*line))


def jsonable(value: Any) -> Any:  # noqa: ANN401
    """What json.dumps takes: names that are not UTF-8 keep their bytes as surrogates."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value

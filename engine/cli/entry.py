# SPDX-License-Identifier: Apache-2.0
"""Start of the `torpor` command: parse, run one command, turn errors into exit codes.

Nothing heavy is imported before the command is known: `torpor --version` needs neither
protobuf nor rich nor the C seam (test_entry.py lists what it loads).
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torpor.engine.errors import Error, out_of_memory
from torpor.engine.version import VERSION

if TYPE_CHECKING:
    from argparse import Namespace

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (`docs/cli.md` lists them)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments[:1]) in (["--version"], ["-V"]):
        print(f"torpor {VERSION}")
        return 0
    from torpor.engine.cli.parser import parse

    options = parse(arguments)
    try:
        code = _run(options.command)(options)
        sys.stdout.flush()
    except (Error, MemoryError) as raised:
        from torpor.engine.cli.failure import report

        error = raised if isinstance(raised, Error) else out_of_memory()
        report(error, as_json=options.json)
        return error.exit_code
    except KeyboardInterrupt:
        print("torpor: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # nobody reads it: no complaint at exit
        return BROKEN_PIPE
    return code


def _run(command: str) -> "Callable[[Namespace], int]":
    """The function of a command; only its module is imported."""
    from importlib import import_module

    run: Callable[[Namespace], int] = import_module(f"torpor.engine.cli.{command}").run
    return run

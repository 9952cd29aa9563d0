# SPDX-License-Identifier: Apache-2.0
"""How an error is told: a line, its cause and its remedy; or one JSON object."""

import json
import sys
from typing import Any

from torpor.engine.errors import Error, Findings
from torpor.engine.text import printable

WORDS = {
    "Refused": "refused", "Vanished": "vanished", "Denied": "not permitted",
    "Unavailable": "not available", "BadImage": "bad image", "KernelError": "failed",
    "Timeout": "timed out", "Bug": "bug in torpor", "Error": "error",
}  # fmt: skip


def report(error: Error, *, as_json: bool) -> None:
    """Write the error to stderr, or as JSON to stdout."""
    if as_json:
        print(json.dumps(as_dict(error), indent=2))
    else:
        print("\n".join(lines(error)), file=sys.stderr)


def as_dict(error: Error) -> dict[str, Any]:
    """The error's fields and exit code; of several findings, each in `items`."""
    fields: dict[str, Any] = {**error.as_dict(), "exit_code": error.exit_code}
    if isinstance(error, Findings):
        fields["items"] = [item.as_dict() for item in error.items]
    return fields


def lines(error: Error) -> list[str]:
    """One block for each finding."""
    items: tuple[Error, ...] = error.items if isinstance(error, Findings) else (error,)
    return [line for item in items for line in _block(item)]


def _block(error: Error) -> list[str]:
    word = WORDS.get(error.reason, error.reason)
    subject = f"{error.subject}: " if error.subject else ""
    block = [printable(f"{word}: {subject}{error.what}")]
    if error.cause:
        block.append(printable(f"  cause: {error.cause}"))
    if error.remedy:
        block.append(printable(f"  remedy: {error.remedy}"))
    return block

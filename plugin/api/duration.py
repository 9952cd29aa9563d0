# SPDX-License-Identifier: Apache-2.0
"""Durations as metav1.Duration writes them: ``5m``, ``1h30m``, ``12.3ms``."""

import re

from torpor.engine.errors import Refused

PATTERN = r"^([0-9]+(\.[0-9]+)?(us|ms|s|m|h))+$"

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h)")


def parse_duration_s(text: str) -> float:
    """Seconds of a duration.

    Raises:
        Refused: the text is no duration.
    """
    if not re.match(PATTERN, text):
        raise Refused("not a duration", subject=repr(text), remedy="write it like 30s, 5m or 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))


def format_duration(seconds: float) -> str:
    """Shortest readable form with three significant digits below a minute."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)

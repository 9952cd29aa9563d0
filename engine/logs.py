# SPDX-License-Identifier: Apache-2.0
"""Logs: one event, one line; plain for people, CRIU-shaped for the runtimes that scrape it.

    log = logs.logger(__name__)
    log.info("task 41/7: 3 threads seized in 2.1 ms")

runc quotes every line with the word `Error` and five lines before it, crun every line with
`Error ` (libcontainer/criu_linux.go, logCriuErrors; src/libcrun/criu.c, show_criu_log). So the
CRIU shape is `(00.012345) Error (module:line): text` and no other line has that word: where it
occurs in a path or a name, it is written in lower case.
"""

import logging
import sys
import time
from contextlib import suppress
from typing import TextIO

ROOT = "torpor"
SILENT, ERRORS, WARNINGS, INFO, DEBUG = range(5)
"""CRIU's levels, as in `-v3`."""

_LEVELS = (logging.CRITICAL + 1, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


def logger(name: str) -> logging.Logger:
    """The logger of a module."""
    return logging.getLogger(name)


def start(stream: TextIO | None = None, *, verbosity: int = WARNINGS, criu: bool = False) -> None:
    """Send what the engine logs to a stream (stderr); a second call replaces the first."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(CriuFormatter(timed=verbosity >= INFO) if criu else PlainFormatter())
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(_LEVELS[max(SILENT, min(verbosity, DEBUG))])
    logging.raiseExceptions = False  # a full disk under the log must not end a dump


def started() -> bool:
    """Whether `start` has been called and `stop` has not."""
    return any(
        isinstance(handler.formatter, (PlainFormatter, CriuFormatter))
        for handler in logging.getLogger(ROOT).handlers
    )


def stop() -> None:
    """Flush; later lines go nowhere. The stream is closed by whoever opened it."""
    root = logging.getLogger(ROOT)
    for handler in root.handlers:
        with suppress(OSError):  # a full disk
            handler.flush()
    root.handlers[:] = [logging.NullHandler()]


class PlainFormatter(logging.Formatter):
    """For people: the text alone, marked where it matters."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        text = _one_line(record)
        if record.levelno >= logging.ERROR:
            return f"error: {text}"
        if record.levelno >= logging.WARNING:
            return f"warning: {text}"
        return text


class CriuFormatter(logging.Formatter):
    """As CRIU writes: seconds since the start (at -v3 and above), level, place, text."""

    def __init__(self, *, timed: bool = True) -> None:
        super().__init__()
        self._timed = timed
        self._started_ns = time.monotonic_ns()

    def format(self, record: logging.LogRecord) -> str:
        """One line; only errors have the word `Error`."""
        elapsed_us = (time.monotonic_ns() - self._started_ns) // 1000
        stamp = f"({elapsed_us // 1_000_000:02d}.{elapsed_us % 1_000_000:06d}) "
        stamp = stamp if self._timed else ""
        text = _one_line(record)
        place = f"({record.module}:{record.lineno})"
        if record.levelno >= logging.ERROR:
            return f"{stamp}Error {place}: {text}"
        text = text.replace("Error", "error")
        if record.levelno >= logging.WARNING:
            return f"{stamp}Warn  {place}: {text}"
        return f"{stamp}{text}"


def _one_line(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    lines = " | ".join(line.strip() for line in text.splitlines() if line.strip())
    return lines.encode("utf-8", "backslashreplace").decode("utf-8")

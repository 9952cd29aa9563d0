# SPDX-License-Identifier: Apache-2.0
r"""Configuration files: options in front of those of the command line.

Facts (criu(8), and criu 4.2.1 tried): a line is a long option without its dashes, and behind
blanks its value, which may stand in double quotes with `\"` inside; more words are ignored, and
`#` begins a comment. /etc/criu/default.conf and $HOME/.criu/default.conf are read unless --config
or --no-default-config is given, then the file of $CRIU_CONFIG_FILE, then that of --config. A
file that is not there is no error.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torpor.engine.criu.options import LONG, Takes
from torpor.engine.errors import Refused

SYSTEM_FILE = Path("/etc/criu/default.conf")
USER_FILE = Path(".criu/default.conf")
VARIABLE = "CRIU_CONFIG_FILE"
WORD = re.compile(r'\s*(?:"((?:\\"|[^"])*)"|([^\s"#]\S*))')


def words(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """Options of all configuration files that count for a command line, in order.

    Raises: Refused for a file that is malformed or cannot be read.
    """
    environment = os.environ if environment is None else environment
    given = _given(arguments)
    files: list[Path] = []
    if given is None and "--no-default-config" not in arguments:
        files.append(SYSTEM_FILE)
        if home := environment.get("HOME"):
            files.append(Path(home) / USER_FILE)
        # HOME may be another user's, left by sudo(8) or setpriv(1)
        files = [file for file in files if os.access(file, os.R_OK)]
    if named := environment.get(VARIABLE):
        files.append(Path(named))
    if given is not None:
        files.append(Path(given))
    return [word for file in files for word in _file(file)]


def _given(arguments: Sequence[str]) -> str | None:
    """The value of --config, before the command line is parsed."""
    found = None
    for i, word in enumerate(arguments):
        if word == "--":
            break
        if word.startswith("--config="):
            found = word.partition("=")[2]
        elif word == "--config" and i + 1 < len(arguments):
            found = arguments[i + 1]
    return found


def _file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Refused(
            "a configuration file cannot be read",
            subject=str(path),
            cause=str(error.strerror),
            remedy="give another, or none",
        ) from error
    return [
        word
        for number, line in enumerate(text.splitlines(), 1)
        for word in _line(path, number, line)
    ]


def _line(path: Path, number: int, line: str) -> list[str]:
    found: list[str] = []
    at = 0
    while at < len(line) and len(found) < 2:
        rest = line[at:].lstrip()
        if not rest or rest.startswith("#"):
            break
        match = WORD.match(line, at)
        if match is None:
            raise Refused(
                "a configuration file is malformed",
                subject=f"{path}, line {number}",
                remedy="close the quotes; see CONFIGURATION FILES in criu(8)",
            )
        found.append(match[2] if match[1] is None else match[1].replace('\\"', '"'))
        at = match.end()
    if not found:
        return []
    name = found[0].partition("=")[0]
    option = LONG.get(name)
    if option is None or option.takes is Takes.NOTHING:
        return [f"--{found[0]}"]
    if "=" in found[0] or len(found) == 1:
        return [f"--{found[0]}"]
    return [f"--{name}={found[1]}"]

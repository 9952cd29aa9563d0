# SPDX-License-Identifier: Apache-2.0
r"""--cgroup-props and --cgroup-props-file: which settings of control groups a dump keeps.

Facts (criu 4.2.1, tried): a description is a sequence of

    "CONTROLLER":
     - "strategy": "replace"
     - "properties": ["FILE", ...]

with exactly these line ends, blanks and double quotes (those behind a colon, a comma or a bracket
are free). `replace` takes the place of the files that are kept otherwise, `merge` adds to them.
What is no description ends the dump; a file that a group does not have is passed over. A file
that is empty is an error, an empty description is none. A restore does not look at them.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Refused
from torpor.engine.images.failures import translated
from torpor.engine.kernel.cgroupfs import SETTINGS

NAME = r'"([^"]+)"'
STRATEGY = r'"strategy":\s*"(replace|merge)"'
CONTROLLER = re.compile(
    rf'{NAME}:\n - {STRATEGY}\n - "properties":\s*\[\s*((?:{NAME}\s*,\s*)*(?:{NAME})?)\s*\]\n?'
)
FORM = (
    'write "CONTROLLER":\\n - "strategy": "replace" or "merge"\\n - "properties": ["FILE", ...], '
    "with these blanks and line ends"
)


def settings(line: CommandLine) -> Mapping[str, tuple[str, ...]]:
    """Controller → files that are kept in place of the usual ones.

    Raises: Refused.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in line.all("cgroup_props")[-1:]:
        _parse("--cgroup-props", text, found)
    for name in line.all("cgroup_props_file")[-1:]:
        with translated("read", name):
            text = Path(name).read_text(encoding="utf-8", errors="surrogateescape")
        if not text:
            raise Refused("holds nothing", subject=f"--cgroup-props-file {name}", remedy=FORM)
        _parse(f"--cgroup-props-file {name}", text, found)
    return found


def _parse(subject: str, text: str, found: dict[str, tuple[str, ...]]) -> None:
    at = 0
    while at < len(text):
        match = CONTROLLER.match(text, at)
        if match is None:
            number = text.count("\n", 0, at) + 1
            raise Refused("no description of settings of control groups",
                          subject=f"{subject}, from line {number} on", remedy=FORM)  # fmt: skip
        controller, strategy, files = match[1], match[2], re.findall(NAME, match[3])
        before = found.get(controller, tuple(SETTINGS.get(controller, ())))
        found[controller] = (*(before if strategy == "merge" else ()), *files)
        at = match.end()

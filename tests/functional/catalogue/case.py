# SPDX-License-Identifier: Apache-2.0
"""One entry of the catalogue.

A workload keeps to the protocol of `tests/functional/harness.py`: it sets a state up, writes
`ready`, waits for `go`, checks that everything is as it was, writes `result`. It must pass when
nothing is done to it at all (`test_catalogue.py` tries that as well).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A state, the workload that sets it up, and what is to come of it.

    ``options`` and ``restore_options`` are words of CRIU's command line, for either engine
    (`--tcp-established`, `-j`). ``refused`` is text of the refusal that the dump must end with;
    the workload then runs on and must be content. ``criu`` tells why Debian's criu is not tried
    with it (what it does not support, what it prints); with "" it is, and crosswise.
    """

    state: str
    """What is shown, in a line: `MAP_GROWSDOWN with guard pages`."""
    program: str
    """`tests/functional/workloads/PROGRAM.c` or `.py`."""
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    restore_options: tuple[str, ...] = ()
    refused: str = ""
    criu: str = ""
    crosswise: str = ""
    """Why images are not exchanged with criu although it takes the state itself."""
    user: int | None = None
    needs: str = ""
    """What of the machine it needs; a workload that writes `lacking: TEXT` to `ready` skips."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """Lines of the description (a regular expression) that must change → why."""
    busy: bool = False
    """It is never at rest, so descriptions are not compared."""

    @property
    def name(self) -> str:
        """`files_locks flock`."""
        return " ".join((self.program, *self.arguments))

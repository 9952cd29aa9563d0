# SPDX-License-Identifier: Apache-2.0
"""`criu check`: what is needed, with --extra also what is not, or one feature."""

import sys

from torpor.engine import logs
from torpor.engine.criu import session
from torpor.engine.criu.options import CHECKS
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Refused

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Try features and tell."""
    session.begin(line)
    from torpor.engine.kernel.features import FEATURES, probe_all

    wanted = line.last("feature")
    if wanted and wanted not in CHECKS:
        raise Refused("unknown feature", subject=wanted, remedy=f"one of {', '.join(CHECKS)}")
    more = line.flag("extra") or line.flag("experimental") or line.flag("all")
    chosen = [f for f in FEATURES
              if (f.name == CHECKS[wanted] if wanted else f.needed or more)]  # fmt: skip
    missing = [f for f in probe_all(chosen) if not f.works]
    for one in missing:
        log.error("%s is missing: %s; %s", one.name, one.cause, one.remedy)
    if wanted:
        sys.stdout.write(f"{wanted} is {'not ' if missing else ''}supported\n")
    elif not missing:
        sys.stdout.write("Looks good.\n")
    return 1 if missing else 0

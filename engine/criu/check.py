# SPDX-License-Identifier: Apache-2.0
"""`criu check`: what is always needed, with --extra and --experimental more, or one feature.

Facts (criu 4.2.1, tried): stdout has `Looks good.`, `Looks good but some kernel features are
missing` or `Does not look good.`, or of --feature `NAME is supported`; the status is not 0 when
anything is missing. What it is stands in the log, which goes to stderr.
"""

import sys

from torpor.engine import logs
from torpor.engine.criu import session
from torpor.engine.criu.features import BY_NAME, CRIU_FEATURES, Category, missing
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Refused

GOOD = "Looks good.\n"
PARTLY = """\
Looks good but some kernel features are missing
which, depending on your process tree, may cause
dump or restore failure.
"""
BAD = "Does not look good.\n"

log = logs.logger(__name__)


def run(line: CommandLine) -> int:
    """Try features and tell."""
    session.begin(line)
    if line.flag("feature"):
        return _one(line.last("feature"))
    needed = _needed()
    more = _more(line)
    sys.stdout.write(GOOD if not needed + more else BAD if needed else PARTLY)
    return 1 if needed or more else 0


def _one(name: str) -> int:
    if name not in BY_NAME:
        raise Refused("unknown feature", subject=name, remedy=f"one of {', '.join(BY_NAME)}")
    why = missing(BY_NAME[name])
    if why:
        log.warning("%s is not supported: %s", name, why)
        return 1
    sys.stdout.write(f"{name} is supported\n")
    return 0


def _needed() -> int:
    """How much is missing of what every dump and restore needs."""
    from torpor.engine.kernel.features import FEATURES, probe_all

    lacking = [f for f in probe_all([f for f in FEATURES if f.needed]) if not f.works]
    for one in lacking:
        log.error("%s is missing: %s; %s", one.name, one.cause, one.remedy)
    return len(lacking) + _tell(Category.NEEDED)


def _more(line: CommandLine) -> int:
    found = 0
    if line.flag("extra") or line.flag("all"):
        found += _tell(Category.EXTRA)
    if line.flag("experimental") or line.flag("all"):
        found += _tell(Category.EXPERIMENTAL)
    return found


def _tell(category: Category) -> int:
    lacking = [
        (one.name, why)
        for one in CRIU_FEATURES
        if one.category is category
        if (why := missing(one))
    ]
    for name, why in lacking:
        log.warning("%s is not supported: %s", name, why)
    return len(lacking)

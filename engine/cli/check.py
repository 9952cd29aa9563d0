# SPDX-License-Identifier: Apache-2.0
"""`torpor check`: the privilege ladder of this machine, each feature tried."""

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence

from torpor.engine.cli import output
from torpor.engine.criu.features import CRIU_FEATURES, CriuFeature, missing
from torpor.engine.errors import Unavailable
from torpor.engine.inspect.lines import BAD, DIM, GOOD, HEADING, WARN, Line, line
from torpor.engine.kernel import rights
from torpor.engine.kernel.features import Finding, probe_all

RUNGS = {
    1: ("with no right at all", "dump and restore the tasks of one user"),
    2: ("with CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE",
        "dump tasks of any user, restore with the old pids"),
    3: ("with full root", "namespaces from nothing, cgroups, mounts, others' seccomp filters"),
}  # fmt: skip


def run(options: Namespace) -> int:
    """Try everything and print it; not 0 when not even the first rung is whole."""
    findings = probe_all()
    if options.json:
        output.emit_json({
            "kernel": os.uname().release, "machine": os.uname().machine, "uid": os.geteuid(),
            "capabilities": sorted(rights.effective()),
            "rungs": {str(rung): whole(findings, rung) for rung in RUNGS},
            "features": findings,
            "criu_features": [
                {"name": one.name, "supported": not why, "cause": why}
                for one, why in criu_features()
            ],
        })  # fmt: skip
    else:
        output.emit_lines(lines(findings))
    return 0 if whole(findings, 1) else Unavailable.exit_code


def whole(findings: Sequence[Finding], rung: int) -> bool:
    """Whether everything that is needed up to a rung works."""
    return all(f.works for f in findings if f.needed and f.rung <= rung)


def lines(findings: Sequence[Finding]) -> Iterator[Line]:
    """The ladder for people."""
    uname = os.uname()
    yield line((f"Linux {uname.release} {uname.machine}", HEADING),
               f", uid {os.geteuid()}, {_capabilities()}")  # fmt: skip
    for rung, (rights_text, use) in RUNGS.items():
        mine = [f for f in findings if f.rung == rung]
        yield line()
        yield line((f"{rung}. {rights_text}", HEADING), f": {use}")
        if mine:
            yield line((f"   tried {mine[0].tried_with}", DIM))
        for one in mine:
            yield from _finding(one)
    yield from _by_name()
    yield line()
    reached = [rung for rung in RUNGS if whole(findings, rung)]
    if reached:
        yield line(f"Everything that torpor needs works up to rung {reached[-1]}.")
    else:
        yield line(("torpor cannot work here: see what is missing under 1.", BAD))


def criu_features() -> Sequence[tuple[CriuFeature, str]]:
    """What `criu check` knows by name, and why it is not supported; tried with all our rights."""
    return [(one, missing(one)) for one in CRIU_FEATURES]


def _by_name() -> Iterator[Line]:
    yield line()
    yield line(("What `criu check` asks for by name", HEADING))
    for one, why in criu_features():
        word, style = ("no", WARN) if why else ("yes", GOOD)
        yield line("   ", (f"{word:<8}", style), f"{one.name:<28}", (why or one.use, DIM))


def _finding(one: Finding) -> Iterator[Line]:
    word, style = ("ok", GOOD) if one.works else ("missing", BAD if one.needed else WARN)
    yield line("   ", (f"{word:<8}", style), f"{one.name:<28}", (one.use, DIM))
    if not one.works:
        yield line(f"           {one.cause}" + ("" if one.needed else " (torpor works without)"))
        yield line(f"           remedy: {one.remedy}")


def _capabilities() -> str:
    held = rights.effective()
    lacking = [name for name in rights.CAPABILITIES if name not in held]
    if not held:
        return "no capability"
    if len(lacking) <= 8:
        return "all capabilities" + (f" but CAP_{', CAP_'.join(lacking)}" if lacking else "")
    return "CAP_" + ", CAP_".join(sorted(held))

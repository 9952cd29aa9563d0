# SPDX-License-Identifier: Apache-2.0
"""Which session has which controlling terminal, by what /proc says of every task."""

from collections.abc import Iterable

from torpor.engine.kernel.proc import parse_stat, parse_status
from torpor.engine.kind import Session


def controlling(texts: Iterable[tuple[str, str]]) -> dict[int, Session]:
    """Device number of a terminal → its session; from (stat, status) of every task."""
    found: dict[int, tuple[int, int]] = {}
    groups: dict[int, int] = {}
    without: dict[int, list[int]] = {}
    for stat_text, status_text in texts:
        stat, status = parse_stat(stat_text), parse_status(status_text)
        groups[stat.pgrp] = status.ns_pgid[-1]
        if stat.tty_nr:
            found[stat.tty_nr & 0xFFFFFFFF] = (status.ns_sid[-1], stat.tpgid)
        elif stat.state not in "ZX":
            without.setdefault(status.ns_sid[-1], []).append(status.ns_tgid[-1])
    return {
        device: Session(
            sid=sid, pgrp=groups.get(foreground, 0), without=tuple(sorted(without.get(sid, ())))
        )
        for device, (sid, foreground) in found.items()
    }

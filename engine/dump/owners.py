# SPDX-License-Identifier: Apache-2.0
"""Who of a tree can be told of I/O (F_SETOWN): its tasks, their threads, its process groups."""

from collections.abc import Iterable, Mapping

from torpor.engine.kernel.proc import Status


def owners(tasks: Iterable[tuple[Status, Mapping[int, int]]]) -> dict[int, int]:
    """Ids as seen from here → inside; each task comes with its threads, the root first.

    The group of the root is the tree's own only when its leader is in the tree.
    """
    found: dict[int, int] = {}
    groups: dict[int, int] = {}
    outer: int | None = None
    for status, threads in tasks:
        found[status.ns_tgid[0]] = status.ns_tgid[-1]
        found.update(threads)
        outer = status.ns_pgid[0] if outer is None else outer
        groups[status.ns_pgid[0]] = status.ns_pgid[-1]
    groups.pop(outer or 0, None)
    return groups | found

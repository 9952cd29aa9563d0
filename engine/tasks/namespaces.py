# SPDX-License-Identifier: Apache-2.0
"""Namespaces: a tree comes back in those of whoever restores it, so it must have lived in such.

Facts:
- /proc/PID/ns has a link for each kind; two tasks are in the same namespace when the links are
  equal. `pid_for_children` and `time_for_children` are what a fork will be in (unshare(2)).
- A tree may have a time namespace of its own: it gets another one with its clocks (`clocks.py`).
  One that unshare(2) has made for children only is nothing that all of a tree is in.
- A container's init is restored into namespaces that its runtime has made. Below it, and in a
  tree of the host, every task must be in the namespaces of the first.
"""

from collections.abc import Mapping

from torpor.engine.errors import Refused
from torpor.engine.kind import Limit, refuse

KINDS = {
    "cgroup": "control group",
    "ipc": "ipc",
    "mnt": "mount",
    "net": "network",
    "pid": "pid",
    "pid_for_children": "pid",
    "time": "time",
    "time_for_children": "time",
    "user": "user",
    "uts": "host name",
}
LIMITS = (
    Limit(
        case="namespace-of-its-own",
        what="a tree that is in another namespace than the engine",
        remedy="run dump and restore inside of it: nsenter -t PID --all",
    ),
    Limit(
        case="namespace-inside",
        what="a task in a namespace of its own below the root",
        remedy="run that program without a sandbox or container of its own",
        is_passing=True,
    ),
)
_OWN, _INSIDE = LIMITS


def check_root(subject: str, root: Mapping[str, str], ours: Mapping[str, str]) -> list[Refused]:
    """Refusals of a host tree's root."""
    own = {**ours, "time": root.get("time", ""), "time_for_children": root.get("time", "")}
    return _refusals(_OWN, subject, root, own)


def check_task(subject: str, task: Mapping[str, str], root: Mapping[str, str]) -> list[Refused]:
    """Refusals of a task below the root."""
    return _refusals(_INSIDE, subject, task, root)


def _refusals(
    limit: Limit, subject: str, found: Mapping[str, str], wanted: Mapping[str, str]
) -> list[Refused]:
    named: dict[str, str] = {}
    for name, text in KINDS.items():
        if name in found and name in wanted and found[name] != wanted[name]:
            named.setdefault(text, f"{text} namespace {found[name]}")
    return [refuse(limit, subject, ", ".join(named.values()))] if named else []

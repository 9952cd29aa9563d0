# SPDX-License-Identifier: Apache-2.0
"""/proc/PID/ns: which namespaces a task is in, and which its children will be.

Facts: `pid_for_children` cannot be read while that pid namespace has no task yet (fs/nsfs.c,
kernel/pid_namespace.c, pidns_for_children_get; v6.18); of a zombie only the links of its user
and pid namespace can.
"""

from contextlib import suppress

from torpor.engine.errors import Vanished
from torpor.engine.kernel import proc


def namespaces(pid: int | str) -> dict[str, str]:
    """Text of each link by name (`net` → `net:[4026531840]`); a zombie has few."""
    try:
        names = proc.list_names(pid, "ns")
    except Vanished:
        return {}
    found = {}
    for name in names:
        with suppress(Vanished):
            found[name] = proc.read_link(pid, f"ns/{name}")
    if "pid_for_children" in names and "pid_for_children" not in found:
        with suppress(Vanished):
            proc.read_link(pid, "ns/net")  # it still lives: that was not the reason
            found["pid_for_children"] = "pid:[empty]"
    return found

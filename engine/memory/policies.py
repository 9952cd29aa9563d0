# SPDX-License-Identifier: Apache-2.0
"""NUMA policies: which nodes of the machine memory is taken from.

Facts (numa(7), probed on v6.18):
- /proc/PID/numa_maps has a line for each area but the kernel's own, with the policy in words
  (mm/mempolicy.c, mpol_to_str): that of the area (mbind), else that of the main thread
  (set_mempolicy). The stack is nobody's to bind, so its line tells which is the thread's.
- It walks every page, as smaps does. It is read before the stop: of a large task only where the
  machine has several nodes. On a machine with one, a policy is a note that nobody acts on.
- Threads inherit the policy of who makes them; one that has set another is not told of.
- A machine that lacks the nodes refuses the policy: the default stays.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.memory.areas import Area
from torpor.engine.program.ops import Data, Expect, Op

DEFAULT = "default"
MODES = {
    "default": 0, "prefer": 1, "bind": 2, "interleave": 3, "local": 4, "prefer (many)": 5,
    "weighted interleave": 6,
}  # fmt: skip
FLAGS = {"static": 1 << 15, "relative": 1 << 14, "balancing": 1 << 13}
_WORDS = "|".join(re.escape(mode) for mode in sorted(MODES, key=len, reverse=True))
POLICY = rf"(?P<mode>{_WORDS})(?:=(?P<flags>[a-z|]+))?(?::(?P<nodes>[0-9,-]+))?"
LINE = re.compile(rf"^([0-9a-f]+) (?P<policy>{POLICY})(?= |$)(?P<rest>.*)$", re.MULTILINE)
NODES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """In the words of numa_maps: of the main thread, and of areas by their start."""

    own: str = DEFAULT
    areas: tuple[tuple[int, str], ...] = ()


NONE = Policies()


def parse(numa_maps: str) -> Policies:
    """What is not as usual."""
    if not re.search(rf"^[0-9a-f]+ (?!{DEFAULT}\b)", numa_maps, re.MULTILINE):
        return NONE
    found = {int(line[1], 16): line["policy"] for line in LINE.finditer(numa_maps)}
    stack = (line for line in LINE.finditer(numa_maps) if line["rest"].startswith(" stack"))
    own = next((line["policy"] for line in stack), DEFAULT)
    return Policies(own=own, areas=tuple((at, p) for at, p in found.items() if p != own))


def encode(policies: Policies) -> dict[str, Any]:
    """For torpor.json; empty when there is nothing to say."""
    if policies == NONE:
        return {}
    return {"own": policies.own, "areas": [list(pair) for pair in policies.areas]}


def decode(kept: Mapping[str, Any] | None) -> Policies:
    """Read them back. Raises ValueError for what is no policy."""
    if not kept:
        return NONE
    pairs = tuple((int(at), str(policy)) for at, policy in kept.get("areas", ()))
    own = str(kept.get("own", DEFAULT))
    for policy in (own, *(policy for _, policy in pairs)):
        _numbers(policy)
    return Policies(own=own, areas=pairs)


def plan(policies: Policies, areas: Sequence[Area]) -> list[Op]:
    """For the main thread, before it makes others; all pages are in place."""
    by_start = dict(policies.areas)
    ops = [] if policies.own == DEFAULT else [_op("set_mempolicy", (), policies.own, "memory")]
    for area in areas:
        if area.start in by_start:
            where = (area.start, area.size_bytes)
            ops.append(_op("mbind", where, by_start[area.start], area.subject))
    return ops


def _op(call: str, where: tuple[int, ...], policy: str, subject: str) -> Op:
    mode, mask = _numbers(policy)
    raw = Data(struct.pack("<16Q", *(mask >> 64 * i & (1 << 64) - 1 for i in range(16))))
    nodes = (raw, NODES + 1) if mask else (0, 0)
    last = (0,) if call == "mbind" else ()
    return Op(
        call=call,
        args=(*where, mode, *nodes, *last),
        subject=subject,
        note=f"NUMA policy {policy}",
        expect=Expect.ANY,
    )


def _numbers(policy: str) -> tuple[int, int]:
    """Mode with its flags, and a mask of nodes."""
    found = re.fullmatch(POLICY, policy)
    if not found:
        raise ValueError(f"{policy!r} is no NUMA policy")
    mode = MODES[found["mode"]]
    for flag in (found["flags"] or "").split("|"):
        mode |= FLAGS[flag] if flag else 0
    mask = 0
    for part in (found["nodes"] or "").split(","):
        first, _, last = part.partition("-")
        if first:
            for node in range(int(first), min(int(last or first), NODES - 1) + 1):
                mask |= 1 << node
    return mode, mask & (1 << NODES) - 1

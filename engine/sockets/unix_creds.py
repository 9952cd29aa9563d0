# SPDX-License-Identifier: Apache-2.0
"""Making unix sockets in the name of others: what SO_PEERCRED and SO_PEERGROUPS will tell.

Facts:
- The kernel remembers the effective ids, the groups and the pid of whoever calls listen(2),
  connect(2) and socketpair(2): init_peercred() of net/unix/af_unix.c (v6.18). The pid stays the
  same number when that task has ended.
- Access to files goes by the fsuid, so that stays the restorer's.
"""

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torpor.engine.kind import PlanContext
from torpor.engine.program.ops import Data, Expect, Op
from torpor.engine.sockets.unix_state import Creator, UnixState

KEEP = (1 << 32) - 1


@dataclass(slots=True)
class Impostor:
    """Wraps operations so that they are another's. ``groups`` are those between them."""

    context: PlanContext
    groups: tuple[int, ...] = ()

    def begin(self, states: Iterable[UnixState]) -> list[Op]:
        """Take the groups that most have."""
        found = Counter(s.creator.groups for s in states if s.creator is not None)
        if not found or self.context.uid:
            return []
        self.groups = found.most_common(1)[0][0]
        return [_groups(self.groups, "unix sockets")]

    def of(self, creator: Creator | None, ops: Iterable[Op]) -> list[Op]:
        """The operations, called by a task with that pid, those ids and groups."""
        made = list(ops)
        if creator is None:
            return made
        where = made[0].subject
        is_other = (creator.uid, creator.gid, creator.groups) != (0, 0, self.groups)
        if is_other and not self.context.uid:
            made = [*_become(creator, where), *made, *self._back(where)]
        return self.by(creator.pid, made)

    def by(self, pid: int, ops: Iterable[Op]) -> list[Op]:
        """The operations, called by a task with that pid (0: whichever)."""
        if not pid or pid == self.context.root or not self.context.root:
            return list(ops)
        self.context.helpers.add(pid)
        return [replace(op, by=pid) for op in ops]

    def _back(self, where: str) -> list[Op]:
        return [
            _op("setresuid", (KEEP, 0, KEEP), where),
            _op("setresgid", (KEEP, 0, KEEP), where),
            _groups(self.groups, where),
        ]


def _become(creator: Creator, where: str) -> list[Op]:
    return [
        _groups(creator.groups, where),
        _op("setresgid", (KEEP, creator.gid, KEEP), where),
        _op("setresuid", (KEEP, creator.uid, KEEP), where),
        _op("setfsuid", (0,), where),
    ]


def _groups(groups: tuple[int, ...], where: str) -> Op:
    raw = struct.pack(f"<{len(groups)}I", *groups)
    return _op("setgroups", (len(groups), Data(raw, 4, (), f"groups {[*groups]}")), where)


def _op(call: str, args: tuple[int | Data, ...], where: str) -> Op:
    return Op(call=call, args=args, subject=where, note="as who has made it", expect=Expect.ANY)

# SPDX-License-Identifier: Apache-2.0
"""How terminals come back.

Facts (probed on v6.18):
- The kernel gives the lowest free index: a number is had by opening masters until it comes, which
  a list of operations cannot do; `restore/terminals.py` does it, as `pairs` says.
- A session gets its terminal from its leader (TIOCSCTTY), children inherit it at fork: so the
  leader takes it before it forks. /dev/tty is opened by the leader then too, for its children.
- The foreground group is set (TIOCSPGRP) by a member of the session, also through the master.
- vhangup(2) hangs up the caller's terminal for all who have it open, and signals the caller.
- A lock and exclusive mode forbid further openings: they are set last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torpor.engine.files import later
from torpor.engine.files.common import AT_FDCWD, O, status_flags, subject
from torpor.engine.files.tty import TIOCSPTLCK, Role, Terminal, closed, node_owner, restored
from torpor.engine.kind import (
    NOTHING_QUEUED,
    FileId,
    LateOp,
    Limit,
    PlanContext,
    TerminalQueue,
    refuse,
)
from torpor.engine.program.ops import Data, Expect, Op, Slot, place

TIOCSCTTY, TIOCSPGRP, TIOCGPTPEER, TIOCNOTTY = 0x540E, 0x5410, 0x5441, 0x5422
HELD = "restore with setsid, or name another terminal with --inherit-fd fd[N]:tty[RDEV:DEV]"
DEVICES = (Role.CONSOLE, Role.VT, Role.SERIAL)

NO_REPLACEMENT = Limit(
    case="terminal-no-replacement",
    what="it had a terminal of the outside and nothing is given in its place",
    remedy="restore with --shell-job (-j) on a terminal, into a container, or name a descriptor "
    "with --inherit-fd fd[N]:tty[RDEV:DEV]",
)

States = Mapping[FileId, Terminal]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A number that a restore has to get: opened by ``path``, then ``ops`` of the root.

    The operations find the master at service number ``fd``. ``queue`` goes in when all is open.
    """

    index: int
    path: str
    flags: int
    fd: int
    subject: str
    ops: Sequence[Op]
    queue: TerminalQueue = NOTHING_QUEUED


def pairs(states: States, context: PlanContext) -> list[Pair]:
    """Numbers that must be had before anything is opened, lowest first."""
    masters = _masters(states)
    found = []
    for pair, file_id in masters.items():
        state, fd = states[file_id], context.fd(file_id)
        what = subject(context, file_id, state.path)
        ops = [_unlock(fd, what), *_hang_up(_hung_up(states, pair), context)]
        found.append(
            Pair(index=state.tty.index, path=state.path, flags=state.flags | O.NOCTTY, fd=fd,
                 subject=what, ops=ops, queue=state.queue)
        )  # fmt: skip
    for pair in sorted({s.pair for s in states.values() if s.tty.hung_up} - {*masters}):
        folder, index = pair
        fd, what = context.spare_fd, f"{folder}/{index}"
        ops = [_unlock(fd, what), *_slaves(_hung_up(states, pair), context)]
        ops.append(Op(call="close", args=(fd,), subject=what, note="hung up by its master"))
        path = "/dev/ptmx" if folder == "/dev/pts" else f"{folder}/ptmx"
        found.append(Pair(index=index, path=path, flags=int(O.RDWR | O.NOCTTY), fd=fd,
                          subject=what, ops=ops))  # fmt: skip
    return sorted(found, key=lambda pair: pair.index)


def plan(states: States, context: PlanContext) -> list[Op]:
    """Slaves and other terminals, settings, and last what forbids more."""
    ops: list[Op] = []
    masters = _masters(states)
    for file_id, state in states.items():
        if state.tty.role is not Role.MASTER and not state.tty.hung_up:
            ops += _opened(file_id, state, state.pair in masters, context)
    for file_id in masters.values():
        ops += _settled(file_id, states, context)
    for file_id, state in states.items():
        if state.pair in masters or state.tty.role in DEVICES:
            ops += closed(state.tty, context.fd(file_id), subject(context, file_id, state.path))
    return ops


def lead(sid: int, states: States, context: PlanContext) -> list[Op]:
    """What the leader of a session does as soon as it is, before it has children."""
    ops: list[Op] = []
    controlled = _by_session(states)
    if sid in controlled:
        file_id = controlled[sid]
        what = subject(context, file_id, states[file_id].path)
        ops += _take(states[file_id], context.fd(file_id), what, context)
    current = {i: s for i, s in states.items() if s.tty.role is Role.CURRENT and s.tty.sid == sid}
    if current and not ops and context.terminal is not None:
        ops.append(_control(context.terminal, "/dev/tty"))
    for file_id, state in current.items():
        what = subject(context, file_id, state.path)
        ops += _open(state.path, context.fd(file_id), state, what)
    return ops


def foreground(states: States, context: PlanContext) -> list[LateOp]:
    """By the leader, or by the leader of the group in a session that is not the tree's."""
    found = []
    tasks = {h.task for held in context.holders.values() for h in held} | context.leaders
    for sid, file_id in _by_session(states).items():
        tty = states[file_id].tty
        if context.new_container and tty.role is Role.OUTSIDE:
            tty = replace(tty, without=())  # what takes its place may be no terminal
        task = sid if sid in context.leaders else tty.pgrp
        if tty.pgrp and task in tasks:
            group = Data(tty.pgrp.to_bytes(4, "little"), text=f"group {tty.pgrp}")
            op = Op(call="ioctl", args=(context.fd(file_id), TIOCSPGRP, group),
                    subject=subject(context, file_id, states[file_id].path),
                    note="foreground group", expect=Expect.ANY)  # fmt: skip
            found.append(LateOp(task=task, op=op))
        found += [LateOp(task=pid, op=op) for pid in tty.without for op in _given_up()]
    return found


def _given_up() -> list[Op]:
    """What a member of a session does that has no terminal any more; it may have none at all."""
    current, what = Slot("current"), "/dev/tty"
    return [
        Op(call="openat", args=(AT_FDCWD, Data.path(what), int(O.RDWR | O.NOCTTY), 0),
           subject=what, yields=current, expect=Expect.ANY),
        Op(call="ioctl", args=(current, TIOCNOTTY, 0), subject=what, note="given up",
           expect=Expect.ANY),
        Op(call="close", args=(current,), subject=what, expect=Expect.ANY),
    ]  # fmt: skip


def _masters(states: States) -> dict[tuple[str, int], FileId]:
    return {s.pair: i for i, s in states.items() if s.tty.role is Role.MASTER}


def _hung_up(states: States, pair: tuple[str, int]) -> dict[FileId, Terminal]:
    return {i: s for i, s in states.items() if s.tty.hung_up and s.pair == pair}


def _by_session(states: States) -> dict[int, FileId]:
    """Session → a description of its terminal; a slave that can be read if there is one."""

    def rank(file_id: FileId) -> tuple[bool, bool]:
        state = states[file_id]
        cannot_read = state.flags & O.ACCMODE == O.WRONLY
        return state.tty.role is Role.MASTER, cannot_read

    ids = [i for i, s in states.items() if s.tty.sid and s.tty.role is not Role.CURRENT]
    found: dict[int, FileId] = {}
    for file_id in sorted(ids, key=rank):
        found.setdefault(states[file_id].tty.sid, file_id)
    return found


def _opened(file_id: FileId, state: Terminal, is_inside: bool, context: PlanContext) -> list[Op]:
    fd, what, tty = context.fd(file_id), subject(context, file_id, state.path), state.tty
    if tty.role is Role.CURRENT and tty.sid in context.leaders:
        return later.placeholder(fd, what)
    if is_inside or tty.role is Role.CURRENT:
        return _open(state.path, fd, state, what)
    if tty.role in DEVICES and tty.key not in context.inherit:
        return [*_open(state.path, fd, state, what), *restored(tty, fd, what)]
    return _replaced(file_id, state, context)


def _open(path: str, fd: int, state: Terminal, what: str) -> list[Op]:
    opened = Op(
        call="openat", args=(AT_FDCWD, Data.path(path), state.flags | O.NOCTTY, 0),
        subject=what, remedy=f"the terminal must be there: {state.path}",
    )  # fmt: skip
    without = state.flags & ~int(O.ASYNC)
    return [*place(opened, fd), *status_flags(fd, state.flags, without, what)]


def _replaced(file_id: FileId, state: Terminal, context: PlanContext) -> list[Op]:
    """A new container's own stdio, or what the caller gave: opened anew, with the old flags."""
    fd, what = context.fd(file_id), subject(context, file_id, state.tty.key)
    if context.new_container:
        held = [h.fd for h in context.holders.get(file_id, ()) if h.fd in context.stdio]
        number = min(held, default=state.stdio)
        source = context.inherit.get(state.tty.key, context.stdio.get(number))
    else:
        source = context.inherit.get(state.tty.key, context.terminal)
    if source is None:
        raise refuse(NO_REPLACEMENT, what)
    if not context.new_container:
        bound = _open(f"/proc/self/fd/{source}", fd, state, what)
        return [*bound, *restored(state.tty, fd, what, size=False)]
    settings = restored(state.tty, fd, what, size=False)
    return [
        Op(call="dup3", args=(source, fd, 0), subject=what, expect=Expect.EQUAL, want=fd,
           note="bound to what takes its place"),
        *(Op(call=op.call, args=op.args, subject=what, expect=Expect.ANY) for op in settings),
    ]  # fmt: skip


def _settled(file_id: FileId, states: States, context: PlanContext) -> list[Op]:
    """Settings of a pair by its master; the owner of its node by a slave."""
    state, fd = states[file_id], context.fd(file_id)
    what = subject(context, file_id, state.path)
    ops = status_flags(fd, state.flags, state.flags & ~int(O.ASYNC), what)
    ops += restored(state.tty, fd, what)
    slaves = [i for i, s in states.items() if s.pair == state.pair and s.tty.role is Role.SLAVE]
    if slaves:
        ops += node_owner(states[slaves[0]].tty, context.fd(slaves[0]), what)
    if state.tty.abandoned:
        ops += [*_peer(fd, what), Op(call="close", args=(_slot(fd),), subject=what)]
    return ops


def _slaves(states: States, context: PlanContext) -> list[Op]:
    ops: list[Op] = []
    for file_id, state in states.items():
        ops += _open(state.path, context.fd(file_id), state, subject(context, file_id, state.path))
    return ops


def _hang_up(states: States, context: PlanContext) -> list[Op]:
    """Slaves that are hung up although their master lives."""
    ops = _slaves(states, context)
    for file_id in [*states][:1]:
        fd, what = context.fd(file_id), subject(context, file_id, states[file_id].path)
        both = Data((1 << 0 | 1 << 17).to_bytes(8, "little"), text="HUP, CONT")
        take = Op(call="rt_sigtimedwait", args=(both, 0, Data(bytes(16)), 8), subject=what,
                  expect=Expect.ANY, note="of the hang-up")  # fmt: skip
        ops += [_control(fd, what), Op(call="vhangup", subject=what), take, take]
    return ops


def _take(state: Terminal, fd: int, what: str, context: PlanContext) -> list[Op]:
    """A leader makes it its session's, by a slave that is opened for it if need be.

    What a new container has in its place may be no terminal.
    """
    if state.tty.role is not Role.MASTER:
        is_own = state.tty.role is not Role.OUTSIDE or not context.new_container
        return [_control(fd, what, Expect.OK if is_own else Expect.ANY)]
    ops = [_unlock(fd, what), *_peer(fd, what), _control(_slot(fd), what),
           Op(call="close", args=(_slot(fd),), subject=what)]  # fmt: skip
    lock = Data((1).to_bytes(4, "little"), text="1")
    if state.tty.locked:
        ops.append(Op(call="ioctl", args=(fd, TIOCSPTLCK, lock), subject=what))
    return ops


def _control(fd: int | Slot, what: str, expect: Expect = Expect.OK) -> Op:
    return Op(call="ioctl", args=(fd, TIOCSCTTY, 0), subject=what, note="controlling terminal",
              expect=expect, remedy=HELD)  # fmt: skip


def _unlock(fd: int, what: str) -> Op:
    return Op(call="ioctl", args=(fd, TIOCSPTLCK, Data(bytes(4), text="0")), subject=what)


def _peer(fd: int, what: str) -> list[Op]:
    flags = int(O.RDWR | O.NOCTTY)
    return [Op(call="ioctl", args=(fd, TIOCGPTPEER, flags), subject=what, yields=_slot(fd))]


def _slot(fd: int) -> Slot:
    return Slot(f"peer{fd}")

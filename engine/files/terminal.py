# SPDX-License-Identifier: Apache-2.0
"""Terminals: pseudo terminals of the tree, /dev/tty, and terminals of the outside.

Facts (probed on v6.18; more in `tty.py`, `ttyplan.py`, `kernel/ttyqueue.py`):
- A pair is the tree's when its master is. A master has one description, for each opening
  makes another pair; a slave may have many.
- A slave without its master is of the outside: it comes back as the terminal of whoever
  restores (--shell-job), as one that is given (--external, --inherit-fd), or as the new
  container's stdio; or it is hung up, and is hung up again.
- Consoles, virtual and serial terminals are devices of the machine, opened again by path.
- What cannot be read: what was written to a master whose slave has never been open.

Source: drivers/tty/pty.c, tty_io.c (v6.18); ioctl_tty(2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torpor.engine.files import ttyimages, ttyplan
from torpor.engine.files.common import (
    OWNER_OUTSIDE,
    Base,
    FileType,
    O,
    created,
    file_type,
    late_owners,
    read_owner,
)
from torpor.engine.files.tty import Role, Terminal, pair_of, read, real_device, role_of
from torpor.engine.kind import (
    DumpContext,
    FdView,
    FileId,
    FileKind,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Op

OUTSIDE = Limit(
    case="terminal-outside",
    what="a terminal whose other end is outside of the tree",
    remedy="dump with --shell-job (-j), or name it: --external tty[RDEV:DEV]",
)
LOST = Limit(
    case="terminal-current-lost",
    what="/dev/tty of a terminal that is no session's of the tree any more",
    remedy="have the program close /dev/tty",
)
LIMITS = (OUTSIDE, LOST, ttyplan.NO_REPLACEMENT, OWNER_OUTSIDE)


class TerminalKind(Base[Terminal]):
    """All terminals that a program can have open."""

    name = "terminal"
    types: Sequence[str] = ("TTY",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the device number."""
        is_device = file_type(view.st_mode) == FileType.CHARACTER and not view.flags & O.PATH
        return is_device and role_of(view.st_rdev) is not None

    def collect(self, view: FdView, context: DumpContext) -> Terminal:
        """Settings, session, and the queues of a pair by its master."""
        state = Terminal(
            path=view.link.removesuffix(" (deleted)"), flags=view.flags & ~int(O.CLOEXEC),
            tty=read(view), owner=read_owner(view, context), stdio=_stdio(view, context),
        )  # fmt: skip
        if state.tty.hung_up:
            if state.tty.role is Role.SLAVE:
                return state
            raise refuse(LOST, view.subject, "it is hung up")
        session = context.terminals.get(real_device(view))
        if session is not None:
            state = replace(
                state,
                tty=replace(state.tty, sid=session.sid, pgrp=session.pgrp, without=session.without),
            )
        if state.tty.role is Role.MASTER:
            return _master(view, state, context)
        if state.tty.role is Role.CURRENT and session is None:
            raise refuse(LOST, view.subject)
        return _bound(view, state, context)

    def encode(self, states: Mapping[FileId, Terminal], images: ImageSink) -> None:
        """tty_file_entry, tty_info_entry, tty_data_entry, and a reg_file_entry of the path."""
        ttyimages.encode(states, images)

    def decode(self, images: ImageSource) -> Mapping[FileId, Terminal]:
        """Read them back. Raises BadImage."""
        return ttyimages.decode(images)

    def plan(self, states: Mapping[FileId, Terminal], context: PlanContext) -> Sequence[Op]:
        """Everything but the masters, which are there already."""
        return ttyplan.plan(created(states, context), context)

    def late(self, states: Mapping[FileId, Terminal], context: PlanContext) -> Sequence[LateOp]:
        """Foreground groups, signal owners."""
        mine = created(states, context)
        owners = late_owners({i: s.owner for i, s in mine.items()}, context)
        return [*ttyplan.foreground(mine, context), *owners]


def _master(view: FdView, state: Terminal, context: DumpContext) -> Terminal:
    """With what is queued, unless no slave was ever open."""
    if not context.is_stopped:
        return state
    slaves = (v for v in context.views.values() if _is_slave_of(v, state.pair))
    if not state.tty.abandoned and not any(slaves):
        return state
    return replace(state, queue=view.terminal_queue())


def _bound(view: FdView, state: Terminal, context: DumpContext) -> Terminal:
    """As it is when the tree has the master, or the device; else as something to be replaced."""
    tty = state.tty
    named = tty.key in context.external or (context.container and state.stdio >= 0)
    is_pair = tty.role is Role.SLAVE
    if is_pair and any(_is_master_of(v, state.pair) for v in context.views.values()):
        return state
    if named and tty.role is not Role.CURRENT:
        return replace(state, tty=replace(tty, role=Role.OUTSIDE, index=-1))
    if is_pair and not context.shell_job:
        raise refuse(OUTSIDE, view.subject, f"its name is {tty.key}")
    return state


def _stdio(view: FdView, context: DumpContext) -> int:
    """Lowest number of 0, 1 and 2 at which the root has the same terminal; -1: none."""
    alike = [i for i, v in context.views.items() if v.st_rdev == view.st_rdev]
    held = [h.fd for i in alike if context.is_stdio(i) for h in context.holders[i] if h.fd <= 2]
    return min(held, default=-1)


def _is_master_of(view: FdView, pair: tuple[str, int]) -> bool:
    if not KIND.matches(view) or role_of(view.st_rdev) is not Role.MASTER:
        return False
    return pair_of(view.link, read(view)) == pair


def _is_slave_of(view: FdView, pair: tuple[str, int]) -> bool:
    if not KIND.matches(view) or role_of(view.st_rdev) is not Role.SLAVE:
        return False
    tty = read(view)
    return pair_of(view.link, tty) == pair and not tty.hung_up


KIND: FileKind[Terminal] = TerminalKind()

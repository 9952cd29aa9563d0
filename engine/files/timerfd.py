# SPDX-License-Identifier: Apache-2.0
"""timerfd_create(2): timers that are read.

Facts (probed on v6.18):
- fdinfo has clockid, ticks (expirations nobody has read), settime flags (octal; bit 0 absolute, bit
  1 cancel on set), it_value (time left, also of an absolute timer) and it_interval.
- A periodic timer that has expired and was not read stands still: time left 0 with ticks 1. The
  others are counted when it is read, or by timerfd_gettime(2), which starts it again as well:
  so that is called. Images of CRIU have time left 0: then it is armed with its interval.
- Ticks are set by the ioctl TFD_IOC_SET_TICKS (CONFIG_CHECKPOINT_RESTORE; 0 is EINVAL), after
  timerfd_settime, which clears them.
- A relative or monotonic timer comes back with the time it had left. An absolute timer of the wall
  clock (also with TFD_TIMER_CANCEL_ON_SET, which nothing else can set) comes back at the same
  wall clock time: it fires at once if that has passed.
- What cannot be set back: that the clock was set while the tree was frozen (ECANCELED).

Source: fs/timerfd.c, timerfd_show, timerfd_ioctl (v6.18).
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.asking import Questions
from torpor.engine.errors import Bug
from torpor.engine.files.common import (
    NOBODY,
    OWNED,
    OWNER_OUTSIDE,
    Base,
    O,
    Owner,
    created,
    decode_owner,
    encode_owner,
    info_number,
    info_value,
    late_owners,
    read_owner,
    status_flags,
    subject,
)
from torpor.engine.images.proto import criu_pb2 as pb
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
)
from torpor.engine.program.ops import Data, Op, Slot, place

LINK = "anon_inode:[timerfd]"
SECOND_NS = 1_000_000_000
MAX_S = (1 << 63) // SECOND_NS
TFD_IOC_SET_TICKS = 0x40085400
ABSOLUTE, CANCEL_ON_SET = 1, 2
WALL_CLOCKS = (0, 8)
"""CLOCK_REALTIME and CLOCK_REALTIME_ALARM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timerfd:
    """Times in nanoseconds. ``deadline_ns`` only of absolute timers of the wall clock."""

    clock: int
    left_ns: int
    interval_ns: int
    ticks: int
    settime_flags: int
    flags: int
    deadline_ns: int | None = None
    owner: Owner = NOBODY


class TimerfdKind(Base[Timerfd]):
    """Timers of timerfd_create(2)."""

    name = "timerfd"
    types: Sequence[str] = ("TIMERFD",)
    limits: Sequence[Limit] = (OWNER_OUTSIDE,)

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK

    def questions(self, view: FdView) -> Questions:
        """Its owner; all else is in fdinfo."""
        del view
        return OWNED

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """Not where ticks are due."""
        is_due = info_number(view, "ticks") and not _time(view, "it_value")
        return not is_due and super().suffice(view, context)

    def collect(self, view: FdView, context: DumpContext) -> Timerfd:
        """Read fdinfo."""
        if info_number(view, "ticks") and not _time(view, "it_value"):
            view.settle_timer()
        clock, flags = info_number(view, "clockid"), info_number(view, "settime flags", 8)
        left = _time(view, "it_value")
        is_wall = clock in WALL_CLOCKS and flags & ABSOLUTE and left
        deadline = context.realtime_ns + left if is_wall and context.realtime_ns else None
        if is_wall and deadline is None and flags & CANCEL_ON_SET:
            context.warn(f"{view.subject}: will not notice that the clock is set")
        return Timerfd(
            clock=clock, left_ns=left, interval_ns=_time(view, "it_interval"),
            ticks=info_number(view, "ticks"), settime_flags=flags,
            flags=view.flags & ~int(O.CLOEXEC), deadline_ns=deadline,
            owner=read_owner(view, context),
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Timerfd], images: ImageSink) -> None:
        """timerfd_entry, and the deadline in torpor.json."""
        for file_id, state in states.items():
            entry = pb.timerfd_entry(
                id=file_id, flags=state.flags, fown=encode_owner(state.owner), clockid=state.clock,
                ticks=state.ticks, settime_flags=state.settime_flags,
                vsec=state.left_ns // SECOND_NS, vnsec=state.left_ns % SECOND_NS,
                isec=state.interval_ns // SECOND_NS, insec=state.interval_ns % SECOND_NS,
            )  # fmt: skip
            images.add("files", pb.file_entry(type=pb.TIMERFD, id=file_id, tfd=entry))
            if state.deadline_ns is not None:
                images.extra("timerfd", str(file_id), {"deadline_ns": state.deadline_ns})

    def decode(self, images: ImageSource) -> Mapping[FileId, Timerfd]:
        """Read them back."""
        return {
            file_id: Timerfd(
                clock=entry.clockid, left_ns=_clamped(entry.vsec, entry.vnsec),
                interval_ns=_clamped(entry.isec, entry.insec), ticks=entry.ticks,
                settime_flags=entry.settime_flags, flags=entry.flags & ~int(O.CLOEXEC),
                deadline_ns=(images.extra("timerfd", str(file_id)) or {}).get("deadline_ns"),
                owner=decode_owner(entry.fown),
            )
            for file_id, entry in images.files("TIMERFD")
        }  # fmt: skip

    def plan(self, states: Mapping[FileId, Timerfd], context: PlanContext) -> Sequence[Op]:
        """Create, arm, set ticks."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            fd, what = context.fd(file_id), subject(context, file_id, LINK)
            flags = state.flags & O.NONBLOCK
            made = Op(call="timerfd_create", args=(state.clock, flags), subject=what,
                      remedy="clocks that wake the machine need CAP_WAKE_ALARM",
                      yields=Slot(f"timerfd{fd}"))  # fmt: skip
            ops += [*place(made, fd), *_arm(state, fd, what)]
            if state.ticks:
                ticks = Data(struct.pack("<Q", state.ticks), text=f"{state.ticks} ticks")
                ops.append(
                    Op(call="ioctl", args=(fd, TFD_IOC_SET_TICKS, ticks), subject=what,
                       remedy="use a kernel with CONFIG_CHECKPOINT_RESTORE")
                )  # fmt: skip
            ops += status_flags(fd, state.flags, flags, what)
        return ops

    def late(self, states: Mapping[FileId, Timerfd], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


def _arm(state: Timerfd, fd: int, what: str) -> list[Op]:
    value, flags = state.left_ns, 0
    if not value and state.interval_ns and state.ticks:
        value = state.interval_ns
    elif state.deadline_ns is not None:
        value, flags = state.deadline_ns, state.settime_flags & (ABSOLUTE | CANCEL_ON_SET)
    if not value:
        return []
    interval = state.interval_ns
    text = f"{'at' if flags else 'in'} {value} ns, every {interval} ns"
    raw = struct.pack(
        "<4q", interval // SECOND_NS, interval % SECOND_NS, value // SECOND_NS, value % SECOND_NS
    )
    return [Op(call="timerfd_settime", args=(fd, flags, Data(raw, text=text), 0), subject=what)]


def _time(view: FdView, key: str) -> int:
    """`(seconds, nanoseconds)` of fdinfo."""
    found = re.fullmatch(r"\((\d+), (\d+)\)", info_value(view, key) or "")
    if found is None:
        raise Bug(f"fdinfo has no {key}", subject=view.subject, cause=f"{list(view.info)}")
    return int(found[1]) * SECOND_NS + int(found[2])


def _clamped(seconds: int, nanoseconds: int) -> int:
    return min(seconds, MAX_S) * SECOND_NS + min(nanoseconds, SECOND_NS - 1)


KIND: FileKind[Timerfd] = TimerfdKind()

# SPDX-License-Identifier: Apache-2.0
"""epoll(7): which descriptions it watches, under which numbers.

Facts (probed on v6.18):
- fdinfo has a line for each watch: tfd (the number it was added under), events, data, and the
  target's position, inode and device. A watch belongs to (description, number): it stays when
  that number is closed or reused while the description lives elsewhere.
- kcmp(KCMP_EPOLL_TFD) says which description is behind a tfd. Whether it is the one at the same
  number is asked with all else; if not, it is looked for everywhere.
- A watch is added again by EPOLL_CTL_ADD in a task that has both. When the target has another
  number there, it is put at the old number for the moment. When no task has both, the root does
  it before it forks, while it has everything: so epoll is planned after all other kinds.
- An epoll may watch another: both exist before the first watch is added.
- EPOLL_CTL_ADD always adds EPOLLERR and EPOLLHUP, and makes what is ready ready again: an edge
  may be told twice.
- EPOLLONESHOT that has fired has no events, not even those two, until EPOLL_CTL_MOD. It is made so
  by firing it: `_spent`. What is neither readable nor writable then (an empty pipe, a listener)
  cannot be fired, and may tell an error.
- What cannot be set back: the order in which ready descriptions are told.

Source: fs/eventpoll.c, ep_show_fdinfo, ep_insert (v6.18).
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index

from torpor.engine.asking import Questions, epoll_target
from torpor.engine.files.common import (
    NOBODY,
    OWNER,
    OWNER_OUTSIDE,
    Base,
    F,
    FileType,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    file_type,
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
    Holder,
    ImageSink,
    ImageSource,
    LateOp,
    Limit,
    PlanContext,
    refuse,
)
from torpor.engine.program.ops import Data, Expect, Op, Slot, place

LINK = "anon_inode:[eventpoll]"
EVENT = struct.Struct("<IQ")
CACHED = 4096
"""Sets of targets."""
CTL_ADD = 1
CTL_MOD = 3
IN, OUT, ONESHOT = 1, 4, 1 << 30
PRIVATE = 0xF << 28
"""EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET: what stays when EPOLLONESHOT has fired."""

TARGET_GONE = Limit(
    case="epoll-target-gone",
    what="an epoll watches a file that no task of the tree has open",
    remedy="remove it with epoll_ctl(EPOLL_CTL_DEL) before the file is closed or sent away",
)
LIMITS = (TARGET_GONE, OWNER_OUTSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """``file`` None: images of CRIU do not tell; it is what a holder has at ``tfd``.

    ``here`` is a number at which a holder has it now, for CRIU, which adds it under that one.
    """

    tfd: int
    events: int
    data: int
    file: FileId | None
    here: int

    @property
    def is_spent(self) -> bool:
        """An EPOLLONESHOT that has fired."""
        return bool(self.events & ONESHOT) and not self.events & ~PRIVATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoll:
    """An epoll and its watches."""

    flags: int
    watches: tuple[Watch, ...]
    owner: Owner = NOBODY


class EpollKind(Base[Epoll]):
    """Descriptors of epoll_create1(2)."""

    name = "epoll"
    types: Sequence[str] = ("EVENTPOLL",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """By the link."""
        return view.link == LINK

    def questions(self, view: FdView) -> Questions:
        """Its owner, and whether targets are what has their numbers; the rest is in fdinfo."""
        return _questions(tuple((tfd, index) for tfd, _, _, index in view.epoll_targets()))

    def suffice(self, view: FdView, context: DumpContext) -> bool:
        """When its targets are what has their numbers."""
        return super().suffice(view, context) and all(
            view.is_own_epoll_target(tfd, index) for tfd, _, _, index in view.epoll_targets()
        )

    def collect(self, view: FdView, context: DumpContext) -> Epoll:
        """Read the watches and find their targets among all descriptions."""
        return Epoll(
            flags=view.flags & ~int(O.CLOEXEC),
            watches=tuple(_watch(view, target, context) for target in view.epoll_targets()),
            owner=read_owner(view, context),
        )

    def encode(self, states: Mapping[FileId, Epoll], images: ImageSink) -> None:
        """eventpoll_file_entry; which file is behind a tfd goes to torpor.json."""
        for file_id, state in states.items():
            entry = pb.eventpoll_file_entry(
                id=file_id, flags=state.flags, fown=encode_owner(state.owner)
            )
            for w in state.watches:
                entry.tfd.add(id=file_id, tfd=w.here, events=w.events, data=w.data)
            images.add("files", pb.file_entry(type=pb.EVENTPOLL, id=file_id, epfd=entry))
            if state.watches:
                images.extra("epoll", str(file_id), [(w.file, w.tfd) for w in state.watches])

    def decode(self, images: ImageSource) -> Mapping[FileId, Epoll]:
        """Read them back."""
        states = {}
        for file_id, entry in images.files("EVENTPOLL"):
            known = images.extra("epoll", str(file_id)) or [(None, t.tfd) for t in entry.tfd]
            if len(known) != len(entry.tfd):
                bad_image("not as many watches as in files.img", f"torpor.json, epoll {file_id}")
            states[file_id] = Epoll(
                flags=entry.flags & ~int(O.CLOEXEC), owner=decode_owner(entry.fown),
                watches=tuple(
                    Watch(
                        tfd=index(tfd), events=t.events, data=t.data, here=t.tfd,
                        file=None if file is None else FileId(index(file)),
                    )
                    for t, (file, tfd) in zip(entry.tfd, known, strict=True)
                ),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Epoll], context: PlanContext) -> Sequence[Op]:
        """Create; add the watches that no task can add by its own numbers, and the spent ones."""
        ops: list[Op] = []
        held = created(states, context)
        for file_id, state in held.items():
            fd, what = context.fd(file_id), subject(context, file_id, LINK)
            made = Op(call="epoll_create1", args=(0,), subject=what, yields=Slot(f"epoll{fd}"))
            ops += [*place(made, fd), *status_flags(fd, state.flags, 0, what)]
        tables = _Tables(context)
        for file_id, state in held.items():
            for watch in sorted(state.watches, key=lambda one: not one.is_spent):
                if _is_by_root(file_id, watch, context) or not tables.place_for(file_id, watch):
                    ops += _by_root(file_id, watch, context)
        return ops

    def late(self, states: Mapping[FileId, Epoll], context: PlanContext) -> Sequence[LateOp]:
        """Add the watches, by the numbers of a task that has both; signal owners."""
        late: list[LateOp] = []
        held = created(states, context)
        tables = _Tables(context)
        for file_id, state in held.items():
            for watch in state.watches:
                found = tables.place_for(file_id, watch)
                if found is None or _is_by_root(file_id, watch, context):
                    continue
                holder, source = found
                is_taken = watch.tfd in tables.numbers[holder.task]
                ops = _add(holder.fd, source, watch, is_taken=is_taken)
                late += [LateOp(task=holder.task, op=op) for op in ops]
        return late + late_owners({i: s.owner for i, s in held.items()}, context)


class _Tables:
    """Who has what at which number."""

    def __init__(self, context: PlanContext) -> None:
        self.holders = context.holders
        self.numbers: dict[int, dict[int, FileId]] = {}
        for file_id, held in context.holders.items():
            for holder in held:
                self.numbers.setdefault(holder.task, {})[holder.fd] = file_id

    def place_for(self, epoll: FileId, watch: Watch) -> tuple[Holder, int] | None:
        """A holder of the epoll, and the number at which its task has the target."""
        holders = self.holders.get(epoll, ())
        for holder in holders:
            there = self.numbers[holder.task].get(watch.tfd)
            if there is not None and watch.file in (None, there):
                return holder, watch.tfd
        for holder in holders:
            for other in self.holders.get(watch.file, ()) if watch.file is not None else ():
                if other.task == holder.task:
                    return holder, other.fd
        return None


@lru_cache(maxsize=CACHED)
def _questions(targets: tuple[tuple[int, int], ...]) -> Questions:
    """Made before a stop, and found again in it."""
    return Questions(*OWNER, *(epoll_target(tfd, index) for tfd, index in targets))


def _watch(view: FdView, target: tuple[int, int, int, int], context: DumpContext) -> Watch:
    tfd, events, data, index = target
    file = _target(view, tfd, index, context)
    held = context.holders.get(file, ())
    numbers = [h.fd for h in held if h.task == view.ns_pid] or [h.fd for h in held] or [tfd]
    here = tfd if tfd in numbers else numbers[0]
    return Watch(tfd=tfd, events=events, data=data, file=file, here=here)


def _target(view: FdView, tfd: int, index: int, context: DumpContext) -> FileId:
    """The description behind a tfd: most often the one with that number."""
    near = _numbered(context).get(tfd, ())
    if view.is_own_epoll_target(tfd, index):
        own = Holder(task=view.ns_pid, fd=tfd)
        return next(file_id for file_id in near if own in context.holders[file_id])
    for file_id in _candidates(near, context):
        if view.epoll_target_is(tfd, index, context.views[file_id]):
            return file_id
    raise refuse(TARGET_GONE, view.subject, f"it was added as fd {tfd}")


def _numbered(context: DumpContext) -> Mapping[int, Sequence[FileId]]:
    """Descriptions by the numbers that tasks have them at."""
    known: dict[int, list[FileId]] | None = context.cache.get("epoll.numbered")
    if known is None:
        known = context.cache["epoll.numbered"] = {}
        for file_id, held in context.holders.items():
            for fd in {h.fd for h in held}:
                known.setdefault(fd, []).append(file_id)
    return known


def _candidates(near: Sequence[FileId], context: DumpContext) -> Iterable[FileId]:
    """All descriptions that can be watched, the near ones first."""
    yield from near
    for file_id, view in context.views.items():
        is_file = file_type(view.st_mode) in (FileType.REGULAR, FileType.DIRECTORY)
        if not is_file and file_id not in near:
            yield file_id


def _add(
    epoll: int, source: int, watch: Watch, *, is_taken: bool, is_fired: bool = False
) -> list[Op]:
    """Add a watch under ``tfd``; what is there now comes back to it."""
    what = f"fd {epoll} -> {LINK}"
    event = Data(EVENT.pack(watch.events, watch.data),
                 text=f"events {watch.events:#x} data {watch.data:#x}")  # fmt: skip
    add = Op(call="epoll_ctl", args=(epoll, CTL_ADD, watch.tfd, event), subject=what,
             note=f"watches fd {watch.tfd}")  # fmt: skip
    adds = _spent(epoll, watch, what) if is_fired else [add]
    if source == watch.tfd:
        return adds
    tfd = watch.tfd
    lend = Op(call="dup3", args=(source, tfd, 0), subject=what, expect=Expect.EQUAL, want=tfd,
              note="for the moment")  # fmt: skip
    if not is_taken:
        return [lend, *adds, Op(call="close", args=(tfd,), subject=what)]
    saved, flags = Slot(f"saved{tfd}"), Slot(f"flags{tfd}")
    return [
        Op(call="fcntl", args=(tfd, F.DUPFD, 0), subject=what, yields=saved),
        Op(call="fcntl", args=(tfd, F.GETFD), subject=what, yields=flags),
        lend,
        *adds,
        Op(call="dup3", args=(saved, tfd, 0), subject=what, expect=Expect.EQUAL, want=tfd),
        Op(call="fcntl", args=(tfd, F.SETFD, flags), subject=what),
        Op(call="close", args=(saved,), subject=what),
    ]


def _is_by_root(epoll: FileId, watch: Watch, context: PlanContext) -> bool:
    """Whether the root can fire a spent one, while nothing else is watched that would be told."""
    service = context.fds.get(watch.file) if watch.file is not None else None
    return watch.is_spent and service is not None and watch.tfd != context.fd(epoll)


def _spent(epoll: int, watch: Watch, what: str) -> list[Op]:
    """Fire it by what it is ready for; if it is not, have it watch for nothing but errors.

    A program has no conditions. So the command of the last call is the word that epoll_pwait has
    written: EPOLL_CTL_MOD when it wrote none, and otherwise events, of which none is a command
    that does something: EPOLLIN is EPOLL_CTL_ADD, of what is there.
    """
    told, command = Data(EVENT.pack(CTL_MOD, 0), text="told"), Slot(f"spent{epoll}.{watch.tfd}")
    fresh = Data(EVENT.pack(watch.events | IN | OUT, watch.data), text="ready for anything")
    event = Data(EVENT.pack(watch.events, watch.data),
                 text=f"events {watch.events:#x} data {watch.data:#x}")  # fmt: skip
    return [
        Op(call="epoll_ctl", args=(epoll, CTL_ADD, watch.tfd, fresh), subject=what,
           note=f"watches fd {watch.tfd}"),
        Op(call="epoll_pwait", args=(epoll, told, 1, 0, 0, 8), subject=what,
           note="is spent by this", expect=Expect.ANY),
        Op(call="@load32", args=(told, 0), subject=what, yields=command),
        Op(call="epoll_ctl", args=(epoll, command, watch.tfd, event), subject=what,
           note="if it is not", expect=Expect.ANY),
    ]  # fmt: skip


def _by_root(epoll: FileId, watch: Watch, context: PlanContext) -> list[Op]:
    """By the root's service numbers, before it forks. Whether ``tfd`` is in use is not known."""
    what = subject(context, epoll, LINK)
    service = context.fds.get(watch.file) if watch.file is not None else None
    fd, tfd = context.fd(epoll), watch.tfd
    if service is None or tfd == fd:
        raise refuse(TARGET_GONE, what, f"it was added as fd {tfd}")
    if service == tfd:
        return _add(fd, service, watch, is_taken=False, is_fired=watch.is_spent)
    saved, any_ = Slot(f"saved{tfd}"), Expect.ANY
    return [
        Op(call="fcntl", args=(tfd, F.DUPFD, context.spare_fd), subject=what, yields=saved,
           expect=any_),
        *_add(fd, service, watch, is_taken=False, is_fired=watch.is_spent),
        Op(call="dup3", args=(saved, tfd, 0), subject=what, expect=any_),
        Op(call="close", args=(saved,), subject=what, expect=any_),
    ]  # fmt: skip


KIND: FileKind[Epoll] = EpollKind()

# SPDX-License-Identifier: Apache-2.0
"""The terminal of a container: its stdio when it runs with a tty.

Facts:
- The terminal belongs to the runtime; the container has its slave side as 0, 1 and 2, often at
  /dev/console or /dev/pts/N. A new container brings its own; that takes its place, with every
  other description of the same terminal.
- Settings by the ioctl TCGETS (36 bytes), set back by TCSETS; also from a task in the background
  when it ignores SIGTTOU. They are set by the root before it has children, best effort: the new
  stdio may be a pipe.
- Other terminals (/dev/tty, masters, the user's own) are refused by `unknown.py`.
- CRIU keeps external terminals as EXT entries under names of the caller.

Source: ioctl_tty(2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torpor.engine.errors import KernelError
from torpor.engine.files.common import (
    NOBODY,
    Base,
    FileType,
    O,
    Owner,
    bad_image,
    created,
    decode_owner,
    encode_owner,
    file_type,
    late_owners,
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
    refuse,
)
from torpor.engine.program.ops import Data, Expect, Op

TCGETS, TCSETS = 0x5401, 0x5402
TERMIOS_BYTES = 36
CONSOLE = (5, 1)
MAJORS = (4, *range(136, 144))

NOT_STDIO = Limit(
    case="terminal",
    what="a terminal that is not the stdio of a container",
    remedy="start the program without a terminal (setsid, redirect 0, 1 and 2)",
)
NO_REPLACEMENT = Limit(
    case="terminal-no-replacement",
    what="it had a terminal and nothing is given in its place",
    remedy="restore into a container, or name a descriptor with --inherit-fd fd[N]:tty[RDEV:DEV]",
)
LIMITS = (NOT_STDIO, NO_REPLACEMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """``stdio`` is the lowest number at which the root has the terminal."""

    rdev: int
    dev: int
    stdio: int
    flags: int
    termios: bytes = b""
    owner: Owner = NOBODY

    @property
    def key(self) -> str:
        """Name under which a caller gives a replacement, as CRIU spells it."""
        return f"tty[{self.rdev:x}:{self.dev:x}]"


class TerminalKind(Base[Terminal]):
    """Terminals that lead out of a container."""

    name = "terminal"
    types: Sequence[str] = ("EXT",)
    limits: Sequence[Limit] = LIMITS

    def matches(self, view: FdView) -> bool:
        """Slave sides and the console; not /dev/tty, not masters."""
        if file_type(view.st_mode) != FileType.CHARACTER or view.flags & O.PATH:
            return False
        major, minor = (view.st_rdev >> 8) & 0xFFF, view.st_rdev & 0xFF
        return major in MAJORS or (major, minor) == CONSOLE

    def collect(self, view: FdView, context: DumpContext) -> Terminal:
        """Only the stdio of a container."""
        alike = [i for i, v in context.views.items() if v.st_rdev == view.st_rdev]
        numbers = [
            h.fd for i in alike if context.is_stdio(i) for h in context.holders[i] if h.fd <= 2
        ]
        if not context.container or not numbers:
            raise refuse(NOT_STDIO, view.subject)
        try:
            termios = view.ioctl(TCGETS, bytes(TERMIOS_BYTES))
        except KernelError:
            termios = b""  # hung up: its other side is gone
        return Terminal(
            rdev=view.st_rdev, dev=view.st_dev, stdio=min(numbers),
            flags=view.flags & ~int(O.CLOEXEC), termios=termios,
        )  # fmt: skip

    def encode(self, states: Mapping[FileId, Terminal], images: ImageSink) -> None:
        """ext_file_entry, and the rest in torpor.json."""
        for file_id, state in states.items():
            entry = pb.ext_file_entry(id=file_id, fown=encode_owner(state.owner))
            images.add("files", pb.file_entry(type=pb.EXT, id=file_id, ext=entry))
            images.extra("terminal", str(file_id), {
                "rdev": state.rdev, "dev": state.dev, "stdio": state.stdio, "flags": state.flags,
                "termios": state.termios.hex(),
            })  # fmt: skip

    def decode(self, images: ImageSource) -> Mapping[FileId, Terminal]:
        """EXT entries that torpor.json calls terminals."""
        states = {}
        for file_id, entry in images.files("EXT"):
            extra = images.extra("terminal", str(file_id))
            if extra is None:
                continue
            termios = bytes.fromhex(extra["termios"])
            if len(termios) not in (0, TERMIOS_BYTES):
                bad_image("settings of a wrong length", f"torpor.json, terminal {file_id}")
            states[file_id] = Terminal(
                rdev=extra["rdev"], dev=extra["dev"], stdio=extra["stdio"],
                flags=extra["flags"], termios=termios, owner=decode_owner(entry.fown),
            )  # fmt: skip
        return states

    def plan(self, states: Mapping[FileId, Terminal], context: PlanContext) -> Sequence[Op]:
        """Bind to the new stdio, or what the caller gave."""
        ops: list[Op] = []
        for file_id, state in created(states, context).items():
            what, fd = subject(context, file_id, state.key), context.fd(file_id)
            numbers = [h.fd for h in context.holders.get(file_id, ()) if h.fd in context.stdio]
            number = min(numbers, default=state.stdio)
            source = context.inherit.get(state.key, context.stdio.get(number))
            if source is None:
                raise refuse(NO_REPLACEMENT, what)
            ops.append(Op(call="dup3", args=(source, fd, 0), subject=what, expect=Expect.EQUAL,
                          want=fd, note="bound to what takes its place"))  # fmt: skip
            if state.termios:
                settings = Data(state.termios, text="termios")
                ops.append(Op(call="ioctl", args=(fd, TCSETS, settings), subject=what,
                              expect=Expect.ANY))  # fmt: skip
        return ops

    def late(self, states: Mapping[FileId, Terminal], context: PlanContext) -> Sequence[LateOp]:
        """Signal owners."""
        return late_owners({i: s.owner for i, s in created(states, context).items()}, context)


KIND: FileKind[Terminal] = TerminalKind()

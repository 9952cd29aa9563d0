# SPDX-License-Identifier: Apache-2.0
"""One end of a terminal: what it is, its settings, CRIU's message of it.

Facts (probed on v6.18):
- /dev/ptmx gives a master with the lowest free index N (TIOCGPTN), its slave is /dev/pts/N. Both
  ends have one set of settings (TCGETS2) and one window size; packet mode and the lock belong
  to the master, exclusive mode to each end.
- An end is hung up when the master is closed, or by vhangup(2): then every ioctl fails with EIO.
  The end of a session leader takes the terminal from the session, and hangs nothing up.
- A master polls POLLHUP while its slave was open and is not.
- /dev/tty, opened, is the controlling terminal of the opener; TIOCGDEV tells which.
- CRIU packs the 19 control characters into the first words of 19 (seen in its images).

Source: drivers/tty/pty.c, tty_io.c (v6.18); ioctl_tty(2).
"""

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from torpor.engine.errors import KernelError
from torpor.engine.files.common import NOBODY, Owner, bad_image
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kind import NOTHING_QUEUED, FdView, TerminalQueue
from torpor.engine.program.ops import Data, Expect, Op

TCGETS2, TCSETS2 = 0x802C542A, 0x402C542B
TIOCGLCKTRMIOS, TIOCSLCKTRMIOS = 0x5456, 0x5457
TIOCGWINSZ, TIOCSWINSZ, TIOCGDEV, TIOCGETD = 0x5413, 0x5414, 0x80045432, 0x5424
TIOCEXCL, TIOCGEXCL, TIOCPKT, TIOCGPKT = 0x540C, 0x80045440, 0x5420, 0x80045438
TIOCGPTN, TIOCSPTLCK, TIOCGPTLCK = 0x80045430, 0x40045431, 0x80045439
TERMIOS = struct.Struct("<4IB19s")
TERMIOS2 = struct.Struct("<4IB19sII")
WINSIZE = struct.Struct("<4H")
CONTROL_CHARACTERS = 19
MAX_INDEX = 1 << 20
POLLHUP = 0x10


class Role(Enum):
    """What a terminal device is. Values are CRIU's words; it knows a master by its device."""

    MASTER = "PTY master"
    SLAVE = "PTY"
    CURRENT = "CTTY"
    CONSOLE = "CONSOLE"
    VT = "VT"
    SERIAL = "SERIAL"
    OUTSIDE = "EXT_TTY"


IDS = {Role.CONSOLE: 1004, Role.CURRENT: 1006, Role.VT: 1008, Role.SERIAL: 1010, Role.OUTSIDE: 1013}
"""CRIU numbers its terminals by twice the index of the pair, these behind them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tty:
    """``termios`` is struct termios2, empty when it is hung up; ``sid`` 0 when no session has it.

    ``abandoned``: a master whose slave was open and is not any more.
    """

    role: Role
    rdev: int
    dev: int
    index: int = -1
    hung_up: bool = False
    abandoned: bool = False
    locked: bool = False
    exclusive: bool = False
    packets: bool = False
    sid: int = 0
    pgrp: int = 0
    without: tuple[int, ...] = ()
    """Members of the session that have no terminal."""
    termios: bytes = b""
    termios_locked: bytes = b""
    size: bytes = bytes(WINSIZE.size)
    uid: int = 0
    gid: int = 0
    mode: int = 0

    @property
    def key(self) -> str:
        """Name under which a caller gives a replacement, as CRIU spells it."""
        return f"tty[{self.rdev:x}:{self.dev:x}]"

    @property
    def info_id(self) -> int:
        """CRIU's id of it."""
        number = IDS.get(self.role, self.index)
        return 2 * number + (self.role is Role.MASTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """A description of an end. ``stdio`` is the lowest number at which the root has it, or -1."""

    path: str
    flags: int
    tty: Tty
    stdio: int = -1
    queue: TerminalQueue = NOTHING_QUEUED
    owner: Owner = NOBODY

    @property
    def pair(self) -> tuple[str, int]:
        """What both ends of a pair have in common: the place of the slaves, and the index."""
        return pair_of(self.path, self.tty)


def pair_of(link: str, tty: Tty) -> tuple[str, int]:
    """/dev/ptmx leads to the slaves in /dev/pts, .../ptmx to those beside it."""
    folder = PurePosixPath(link).parent
    is_usual = tty.role is Role.MASTER and folder == PurePosixPath("/dev")
    return "/dev/pts" if is_usual else str(folder), tty.index


def role_of(device: int) -> Role | None:
    """None: not a terminal that we know."""
    major, minor = device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
    single = {0: Role.CURRENT, 1: Role.CONSOLE, 2: Role.MASTER}
    if major == 5:
        return single.get(minor)
    if major == 4:
        return Role.VT if minor < 64 else Role.SERIAL
    return Role.SLAVE if 136 <= major < 144 else None


def index_of(device: int) -> int:
    """Index of a slave by its device number."""
    return ((device >> 8 & 0xFFF) - 136) * 256 + (device & 0xFF | device >> 12 & 0xFFF00)


def read(view: FdView) -> Tty:
    """Everything that its descriptor tells."""
    role = role_of(view.st_rdev)
    assert role is not None
    index = index_of(view.st_rdev) if role is Role.SLAVE else -1
    node = Tty(
        role=role, index=index, rdev=view.st_rdev, dev=view.st_dev, uid=view.st_uid,
        gid=view.st_gid, mode=view.st_mode & 0o7777,
    )  # fmt: skip
    if is_hung_up(view):
        return replace(node, hung_up=True)
    if role is Role.MASTER:
        index = _number(view, TIOCGPTN)
    return replace(
        node, index=index,
        abandoned=role is Role.MASTER and bool(view.poll_events() & POLLHUP),
        locked=role is Role.MASTER and bool(_number(view, TIOCGPTLCK)),
        packets=role is Role.MASTER and bool(_number(view, TIOCGPKT)),
        exclusive=bool(_number(view, TIOCGEXCL)),
        termios=view.ioctl(TCGETS2, bytes(TERMIOS2.size)),
        termios_locked=view.ioctl(TIOCGLCKTRMIOS, bytes(TERMIOS.size)),
        size=view.ioctl(TIOCGWINSZ, bytes(WINSIZE.size)),
    )  # fmt: skip


def is_hung_up(view: FdView) -> bool:
    """Whether nothing can be asked of it any more."""
    try:
        view.ioctl(TIOCGETD, bytes(4))
    except KernelError as error:
        if error.errno == errno.EIO:
            return True
        raise
    return False


def real_device(view: FdView) -> int:
    """Device number of the terminal behind /dev/tty, a console or a master."""
    return _number(view, TIOCGDEV)


def _number(view: FdView, request: int) -> int:
    return int(struct.unpack("<I", view.ioctl(request, bytes(4)))[0])


def restored(tty: Tty, fd: int, what: str, *, size: bool = True) -> list[Op]:
    """Settings, by a descriptor of either end."""
    ops = []
    if tty.termios:
        ops.append(_ioctl(fd, TCSETS2, Data(tty.termios, text="termios"), what))
    if any(tty.termios_locked):
        locked = Data(tty.termios_locked, text="locked termios")
        ops.append(_ioctl(fd, TIOCSLCKTRMIOS, locked, what))
    if size and any(tty.size):
        rows, columns, _, _ = WINSIZE.unpack(tty.size)
        ops.append(_ioctl(fd, TIOCSWINSZ, Data(tty.size, text=f"{columns}x{rows}"), what))
    return ops


def closed(tty: Tty, fd: int, what: str) -> list[Op]:
    """What forbids or changes later uses of an end, by a descriptor of it."""
    ops = []
    if tty.exclusive:
        ops.append(Op(call="ioctl", args=(fd, TIOCEXCL), subject=what, note="exclusive"))
    if tty.packets:
        ops.append(_ioctl(fd, TIOCPKT, Data(struct.pack("<i", 1), text="1"), what, "packet mode"))
    if tty.locked:
        ops.append(_ioctl(fd, TIOCSPTLCK, Data(struct.pack("<i", 1), text="1"), what, "locked"))
    return ops


def node_owner(tty: Tty, fd: int, what: str) -> list[Op]:
    """Owner and mode of a slave's device node."""
    return [
        Op(call="fchown", args=(fd, tty.uid, tty.gid), subject=what, expect=Expect.ANY),
        Op(call="fchmod", args=(fd, tty.mode), subject=what, expect=Expect.ANY),
    ]


def _ioctl(fd: int, request: int, data: Data, what: str, note: str = "") -> Op:
    return Op(call="ioctl", args=(fd, request, data), subject=what, note=note)


def encode_info(tty: Tty) -> Any:  # noqa: ANN401
    """CRIU's tty_info_entry."""
    kind = "PTY" if tty.role in (Role.MASTER, Role.SLAVE) else tty.role.value
    entry = pb.tty_info_entry(
        id=tty.info_id, type=kind, locked=tty.locked, exclusive=tty.exclusive,
        packet_mode=tty.packets, sid=tty.sid, pgrp=tty.pgrp, rdev=tty.rdev & 0xFFFFFFFF,
        dev=tty.dev & 0xFFFFFFFF, uid=tty.uid, gid=tty.gid,
    )  # fmt: skip
    if kind == "PTY":
        entry.pty.index = tty.index
    if tty.termios:
        entry.termios.CopyFrom(_termios(tty.termios))
        entry.termios_locked.CopyFrom(_termios(tty.termios_locked + bytes(8)))
        rows, columns, x, y = WINSIZE.unpack(tty.size)
        entry.winsize.CopyFrom(
            pb.winsize_entry(ws_row=rows, ws_col=columns, ws_xpixel=x, ws_ypixel=y)
        )
    return entry


def decode_info(entry: Any, where: str) -> Tty:  # noqa: ANN401
    """Read it back. Raises BadImage."""
    kind = pb.TtyType.Name(entry.type)
    if kind == "UNKNOWN" or (kind == "PTY" and entry.pty.index >= MAX_INDEX):
        bad_image(f"a terminal of type {kind}, index {entry.pty.index}", where)
    is_master = kind == "PTY" and role_of(entry.rdev) is Role.MASTER
    role = Role.MASTER if is_master else Role(kind)
    has = entry.HasField("termios")
    size = entry.winsize
    limit = 0xFFFF
    return Tty(
        role=role, rdev=entry.rdev, dev=entry.dev, hung_up=not has,
        index=entry.pty.index if kind == "PTY" else -1,
        locked=is_master and entry.locked, exclusive=entry.exclusive, packets=entry.packet_mode,
        sid=entry.sid, pgrp=entry.pgrp,
        termios=_packed(entry.termios, where) if has else b"",
        termios_locked=_packed(entry.termios_locked, where)[: TERMIOS.size] if has else b"",
        size=WINSIZE.pack(size.ws_row & limit, size.ws_col & limit, size.ws_xpixel & limit,
                          size.ws_ypixel & limit),
        uid=entry.uid, gid=entry.gid, mode=0o620,
    )  # fmt: skip


def _termios(raw: bytes) -> Any:  # noqa: ANN401
    iflag, oflag, cflag, lflag, discipline, characters, ispeed, ospeed = TERMIOS2.unpack(raw)
    words = struct.unpack("<5I", characters.ljust(20, b"\0"))
    return pb.termios_entry(
        c_iflag=iflag, c_oflag=oflag, c_cflag=cflag, c_lflag=lflag, c_line=discipline,
        c_ispeed=ispeed, c_ospeed=ospeed, c_cc=[*words, *[0] * (CONTROL_CHARACTERS - len(words))],
    )  # fmt: skip


def _packed(entry: Any, where: str) -> bytes:  # noqa: ANN401
    words: Sequence[int] = entry.c_cc
    if len(words) < 5 or entry.c_line > 0xFF:
        bad_image("settings of a terminal of a wrong size", where)
    characters = struct.pack("<5I", *words[:5])[:CONTROL_CHARACTERS]
    speeds = (entry.c_ispeed, entry.c_ospeed)
    return TERMIOS2.pack(entry.c_iflag, entry.c_oflag, entry.c_cflag, entry.c_lflag, entry.c_line,
                         characters, *speeds)  # fmt: skip

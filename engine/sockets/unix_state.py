# SPDX-License-Identifier: Apache-2.0
"""The state of a unix socket, and what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torpor.engine.files.common import NOBODY, Owner
from torpor.engine.kernel.abi import SOCK
from torpor.engine.kind import Message
from torpor.engine.sockets.options import SocketOptions

FAMILY_SIZE = 2
SHUT_BOTH = 3
SCM_RIGHTS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the file of a name is."""

    directory: str = ""
    """Where a relative name starts."""
    at: str = ""
    """The file is there, not where the name says; "": it is where the name says, or gone."""
    links: tuple[str, ...] = ()
    """More names of the file, by link(2)."""
    deleted: bool = False
    """It has no name any more."""
    folder: str = ""
    """Of a file that is gone: the closest directory of its name that is there."""
    file: int = 0
    """Tells sockets apart that were bound to one name after another."""
    mode: int = 0o777
    uid: int = 0
    gid: int = 0

    def of_file(self) -> tuple[str, bool, int]:
        """What is the same in all sockets of one file."""
        return self.directory, self.deleted, self.file


NOWHERE = Place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Creator:
    """The credentials that SO_PEERCRED and SO_PEERGROUPS of the other end tell; pid inside."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixState:
    """One socket. ``name`` as in sun_path: absolute or relative path, or NUL and bytes."""

    inode: int
    kind: int
    flags: int
    name: bytes = b""
    place: Place = NOWHERE
    peer: int | None = None
    """Inode of the other end, 0 when it is closed or waits to be accepted, None: none."""
    peer_name: bytes = b""
    peer_folder: str = ""
    """Of an end that is closed: the closest directory of its name that is there."""
    listening: bool = False
    backlog: int = 0
    pending: tuple[int, ...] = ()
    """Inodes of clients that wait to be accepted here, in their order."""
    shutdown: int = 0
    reset: bool = False
    creator: Creator | None = None
    """What SO_PEERCRED tells here; of a listener it is its own. None: not known."""
    owner: Owner = NOBODY
    options: SocketOptions = field(default_factory=SocketOptions)
    queue: tuple[Message, ...] = ()

    @property
    def stream(self) -> bool:
        """Connections (also seqpacket), not datagrams."""
        return self.kind != SOCK.DGRAM

    @property
    def has_path(self) -> bool:
        """Its name is a path."""
        return is_path(self.name)

    @property
    def label(self) -> str:
        """`unix:[9123] /run/x.sock`."""
        name = readable(self.name)
        return f"unix:[{self.inode}] {name}" if name else f"unix:[{self.inode}]"


def is_path(name: bytes) -> bool:
    """A name in the file system."""
    return bool(name) and name[:1] != b"\0"


def readable(name: bytes) -> str:
    """A name for messages: `/path`, `@abstract`."""
    text = name.decode("utf-8", "backslashreplace")
    return "@" + text[1:].replace("\0", "\\0") if name[:1] == b"\0" else text


def strip_name(raw: bytes) -> bytes:
    """sun_path without the NULs that end a path; abstract names as they are."""
    return raw if raw[:1] == b"\0" and raw.strip(b"\0") else raw.partition(b"\0")[0]


def is_outside(state: UnixState, by_inode: Mapping[int, UnixState], waiting: set[int]) -> bool:
    """The other end is not in the tree.

    One that waits outside to be accepted has peer 0 as a closed one has, but only the closed
    one has shut both directions.
    """
    if state.listening or state.peer is None or state.inode in waiting:
        return False
    if state.peer == 0:
        return state.stream and state.shutdown != SHUT_BOTH
    return state.peer not in by_inode

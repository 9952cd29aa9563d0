# SPDX-License-Identifier: Apache-2.0
"""How unix sockets get their names: bind(2), wherever the file is to be in the end.

A file that is where its name says is made there; a relative name from its directory. All others
(moved, gone, of another root, two of one name) are made in a directory for the purpose, where
the name leads to it: by chroot(2) for an absolute one. There the file has a short name
that clients call; in the end it is moved to its place, or removed. The inode stays the same, and
so does what getsockname(2) tells.
"""

import posixpath
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from torpor.engine.kernel.abi import AF, ENXIO, S_IFSOCK
from torpor.engine.program.ops import Arg, Data, Expect, Op, Slot
from torpor.engine.sockets.unix_state import UnixState, is_path, readable

AT_FDCWD, AT_REMOVEDIR = -100, 0x200
O_RDONLY_NOFOLLOW = 0o400000 | 0o4000  # with O_NONBLOCK, for a fifo at the path
O_PATH_DIRECTORY = 0o10000000 | 0o200000
OTHER_FILE = "something else is at the socket's path: move it away"
SUN_PATH = 108
SHORT = "s"

Key = tuple[bytes, tuple[str, bool, int]]


def key_of(state: UnixState) -> Key:
    """Equal for a listener and all that it has accepted."""
    return state.name, state.place.of_file() if state.has_path else ("", False, 0)


@dataclass(slots=True)
class _Bound:
    state: UnixState
    aside: str
    """The directory for the purpose, "" without."""
    where: str


@dataclass(slots=True)
class Binder:
    """Binds sockets, and tells how each name is reached until `finish`."""

    ops: list[Op]
    bound: dict[Key, _Bound] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Paths that are made in their place."""

    def bind(self, fd: Arg, state: UnixState, where: str) -> None:
        """Bind to the name; of a path also its mode and owner."""
        if not state.has_path:
            self.ops.append(bind(fd, state.name, where))
            self.bound[key_of(state)] = _Bound(state, "", where)
            return
        place, full = state.place, full_path(state)
        if place.at or place.deleted or full in self.taken:
            self._aside(fd, state, where)
            return
        self.taken.add(full)
        self.bound[key_of(state)] = _Bound(state, "", where)
        if place.directory:
            self.ops.append(_chdir(place.directory, where))
        self.ops += _freed(full, where)
        self.ops.append(bind(fd, state.name, where))
        self.ops += _perms(full, state, where)

    def reach(self, state: UnixState) -> tuple[list[Op], Data]:
        """What leads to a socket that is bound: operations, and the address to call then."""
        known = self.bound.get(key_of(state))
        if known is not None and known.aside:
            return [_chdir(known.aside, known.where)], address(SHORT.encode())
        ops = [_chdir(state.place.directory, "")] if state.place.directory else []
        return ops, address(state.name)

    def finish(self) -> None:
        """Every file to its place, with all its names."""
        for known in self.bound.values():
            place, where = known.state.place, known.where
            made = Data.path(f"{known.aside}/{SHORT}" if known.aside else full_path(known.state))
            if known.aside and place.deleted:
                self.ops.append(
                    Op(call="unlinkat", args=(AT_FDCWD, made, 0), subject=where,
                       note="its name was gone")
                )  # fmt: skip
            elif known.aside:
                final = place.at or full_path(known.state)
                self.ops += _freed(final, where)
                self.ops.append(
                    Op(call="renameat2", args=(AT_FDCWD, made, AT_FDCWD, Data.path(final), 0),
                       subject=where, note="where it was moved to")
                )  # fmt: skip
                self.ops += _perms(final, known.state, where)
                made = Data.path(final)
            for link in place.links:
                self.ops += _freed(link, where)
                self.ops.append(
                    Op(call="linkat", args=(AT_FDCWD, made, AT_FDCWD, Data.path(link), 0),
                       subject=where, note="another name")
                )  # fmt: skip
            if known.aside:
                self.ops.append(_rmdir(known.aside, where))

    def _aside(self, fd: Arg, state: UnixState, where: str) -> None:
        """Bind in a directory for the purpose."""
        aside = posixpath.join(folder_of(state), f".torpor-{state.inode}")
        self.bound[key_of(state)] = _Bound(state, aside, where)
        name = state.name.decode("utf-8", "surrogateescape")
        start, folders, made = _inner(aside, name)
        short = f"{aside}/{SHORT}"
        clean = [
            _unlink(made, where), *(_rmdir(one, where) for one in reversed(folders)),
            _unlink(short, where), _rmdir(aside, where),
        ]  # fmt: skip
        self.ops += clean
        self.ops.append(
            Op(call="mkdirat", args=(AT_FDCWD, Data.path(aside), 0o700), subject=where,
               note="to make its file in", undo=tuple(clean))
        )  # fmt: skip
        self.ops += [
            Op(call="mkdirat", args=(AT_FDCWD, Data.path(one), 0o700), subject=where)
            for one in folders
        ]
        named = bind(fd, state.name, where)
        if name.startswith("/"):
            self.ops += _inside(aside, named, where)
        else:
            self.ops += [_chdir(start, where), named]
        self.ops.append(
            Op(call="renameat2",
               args=(AT_FDCWD, Data.path(made), AT_FDCWD, Data.path(short), 0), subject=where)
        )  # fmt: skip
        self.ops += [_rmdir(one, where) for one in reversed(folders)]


def full_path(state: UnixState) -> str:
    """The path that the name is, or was, of."""
    return posixpath.join(state.place.directory, state.name.decode("utf-8", "surrogateescape"))


def address(name: bytes) -> Data:
    """Struct sockaddr_un, as long as what bind(2) was given."""
    end = b"\0" if is_path(name) and len(name) < SUN_PATH else b""
    return Data(struct.pack("<H", AF.UNIX) + name + end, 2, (), f"'{readable(name)}'")


def folder_of(state: UnixState) -> str:
    """A directory that is there when the file is made."""
    place = state.place
    if place.deleted and not place.folder:  # CRIU does not say whether there is one
        return "/tmp"  # noqa: S108
    return place.folder or posixpath.dirname(place.at or full_path(state)) or "/"


def _inner(aside: str, name: str) -> tuple[str, list[str], str]:
    """Of a name inside of a directory: where it starts, what is on its way, where it leads."""
    *parts, _ = (part for part in name.split("/") if part)
    start = aside if name.startswith("/") else aside + "/d" * parts.count("..")
    folders = list(_on_the_way(aside, start, parts))
    return start, folders, _normal(aside, posixpath.join(start, name.lstrip("/")))


def _on_the_way(aside: str, start: str, parts: list[str]) -> Iterator[str]:
    seen = {aside}
    down = start[len(aside) :].count("/")
    ways = [aside + "/d" * n for n in range(1, down + 1)]
    ways += [posixpath.join(start, *parts[:n]) for n in range(1, len(parts) + 1)]
    for way in ways:
        one = _normal(aside, way)
        if one not in seen:
            seen.add(one)
            yield one


def _normal(aside: str, path: str) -> str:
    """Without dots, and never above the directory, which is a root."""
    inner = posixpath.normpath("/" + path[len(aside) :].lstrip("/"))
    return aside if inner == "/" else aside + inner


def _inside(root: str, op: Op, where: str) -> list[Op]:
    """With another root directory for the moment."""
    old = Slot(f"root of {root}")
    return [
        Op(call="openat", args=(AT_FDCWD, Data.path("/"), O_PATH_DIRECTORY, 0), subject=where,
           yields=old),
        _chdir(root, where),
        Op(call="chroot", args=(Data.path("."),), subject=where,
           remedy="restore with CAP_SYS_CHROOT"),
        op,
        Op(call="fchdir", args=(old,), subject=where),
        Op(call="chroot", args=(Data.path("."),), subject=where),
        Op(call="close", args=(old,), subject=where),
    ]  # fmt: skip


def bind(fd: Arg, name: bytes, where: str) -> Op:
    """Bind, where the name leads to the right place."""
    at = address(name)
    return Op(
        call="bind", args=(fd, at, len(at.content)), subject=where,
        note=readable(name), remedy=f"make sure that nothing else uses {readable(name)}",
    )  # fmt: skip


def _perms(path: str, state: UnixState, where: str) -> list[Op]:
    place, at = state.place, Data.path(path)
    return [
        Op(call="fchownat", args=(AT_FDCWD, at, place.uid, place.gid, 0), subject=where),
        Op(call="fchmodat", args=(AT_FDCWD, at, place.mode), subject=where),
    ]


def _freed(path: str, where: str) -> list[Op]:
    """Unlink what an earlier run left, but only a socket: open(2) of one gives ENXIO.

    There is always something to unlink, because a socket file is made first; when that could be
    made, no name is to be left by a restore that fails.
    """
    at, made = Data.path(path), Slot(f"made {path}")
    return [
        Op(call="mknodat", args=(AT_FDCWD, at, S_IFSOCK | 0o600, 0), subject=where,
           expect=Expect.ANY, yields=made, undo=(_unlink(path, where),)),
        Op(call="openat", args=(AT_FDCWD, at, O_RDONLY_NOFOLLOW, 0), subject=where,
           note="a socket gives ENXIO", remedy=OTHER_FILE, expect=Expect.EQUAL, want=-ENXIO),
        Op(call="unlinkat", args=(AT_FDCWD, at, 0), subject=where, note="left by an earlier run"),
    ]  # fmt: skip


def _chdir(path: str, where: str) -> Op:
    return Op(call="chdir", args=(Data.path(path),), subject=where)


def _unlink(path: str, where: str) -> Op:
    return Op(
        call="unlinkat", args=(AT_FDCWD, Data.path(path), 0), subject=where, expect=Expect.ANY
    )


def _rmdir(path: str, where: str) -> Op:
    return Op(
        call="unlinkat", args=(AT_FDCWD, Data.path(path), AT_REMOVEDIR), subject=where,
        expect=Expect.ANY,
    )  # fmt: skip

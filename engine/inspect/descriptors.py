# SPDX-License-Identifier: Apache-2.0
"""Descriptors of an image in words: what each of CRIU's types of files says.

Every type of CRIU is known here, also those that torpor does not restore: `show` is for any
image directory.
"""

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any

from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.source import Source
from torpor.engine.inspect.model import Descriptor
from torpor.engine.text import count, name

ACCESS = ("read", "write", "read-write", "path only")
O_APPEND, O_NONBLOCK, O_DIRECTORY, O_PATH = 0o2000, 0o4000, 0o200000, 0o10000000
FD_CLOEXEC = 1
TCP_STATES = {1: "established", 7: "closed", 8: "close-wait", 10: "listening"}
UNIX_STATES = {1: "connected", 7: "unconnected", 10: "listening"}
PROTOCOLS = {0: "ip", 1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 136: "udplite"}
SOCKET_TYPES = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket"}
CLOCKS = {0: "realtime", 1: "monotonic", 7: "boottime", 8: "realtime alarm", 9: "boottime alarm"}
TERMINALS = {pb.PTY: "pty", pb.CONSOLE: "console", pb.VT: "virtual terminal",
             pb.CTTY: "controlling terminal", pb.EXT_TTY: "outside",
             pb.SERIAL: "serial"}  # fmt: skip
Words = tuple[str, str, str]
"""Kind, name, detail."""


class Descriptions:
    """The open file descriptions of an image directory, in words."""

    def __init__(self, images: ImageDirectory, source: Source) -> None:
        self._by_id: dict[int, tuple[str, Any]] = {
            number: (type_name, message)
            for type_name in source.file_types()
            for number, message in source.files(type_name)
        }
        self._remaps = {
            m.orig_id: m for m in images.messages("remap-fpath", pb.remap_file_path_entry)
        }
        self._terminals = {m.id: m for m in images.messages("tty-info", pb.tty_info_entry)}
        self._memfds = {m.inode_id: m for m in images.messages("memfd", pb.memfd_inode_entry)}
        self._unix_names = {
            m.ino: m.name for t, m in self._by_id.values() if t == "UNIXSK" and m.name
        }

    def path(self, number: int) -> str:
        """Path of a REG entry; empty when there is none."""
        type_name, message = self._by_id.get(number, ("", None))
        return name(message.name) if type_name == "REG" and message is not None else ""

    def table(self, images: ImageDirectory, number: int) -> list[Descriptor]:
        """Descriptors of table `fdinfo-N`, by number."""
        found = [self._one(m) for m in images.messages(f"fdinfo-{number}", pb.fdinfo_entry)]
        return sorted(found, key=lambda d: d.fd)

    def _one(self, entry: pb.fdinfo_entry) -> Descriptor:
        type_name, message = self._by_id.get(entry.id, ("", None))
        if message is None:
            kind, text, detail = "unknown", f"file {entry.id}", "its entry is missing"
        else:
            kind, text, detail = self._words(type_name, message)
        return Descriptor(fd=entry.fd, kind=kind, name=text, detail=detail,
                          cloexec=bool(entry.flags & FD_CLOEXEC))  # fmt: skip

    def _words(self, type_name: str, message: Any) -> Words:  # noqa: ANN401
        own: Mapping[str, Callable[[Any], Words]] = {
            "REG": self._regular, "UNIXSK": self._unix, "TTY": self._terminal,
            "MEMFD": self._memfd, "FIFO": self._fifo, "EVENTPOLL": self._epoll,
        }  # fmt: skip
        rule = own.get(type_name) or RULES.get(type_name)
        return rule(message) if rule else (type_name.lower(), f"id {message.id}", "")

    def _regular(self, m: pb.reg_file_entry) -> Words:
        detail = [_access(m.flags)]
        if m.flags & O_APPEND:
            detail.append("append")
        if m.pos:
            detail.append(f"at byte {m.pos:,}")
        remap = self._remaps.get(m.id)
        if remap is not None:
            saved = "content saved" if remap.remap_type == pb.GHOST else "found by another name"
            detail.append(f"deleted, {saved}")
        kind = "directory" if m.flags & O_DIRECTORY else "file"
        return kind, name(m.name), ", ".join(detail)

    def _unix(self, m: pb.unix_sk_entry) -> Words:
        detail = [SOCKET_TYPES.get(m.type, str(m.type)), UNIX_STATES.get(m.state, str(m.state))]
        if m.peer and m.peer in self._unix_names:
            detail.append(f"to {_unix_name(self._unix_names[m.peer])}")
        elif m.peer:
            detail.append(f"to socket {m.peer}")
        return "unix socket", _unix_name(m.name) or f"socket:[{m.ino}]", ", ".join(detail)

    def _terminal(self, m: pb.tty_file_entry) -> Words:
        info = self._terminals.get(m.tty_info_id)
        text = TERMINALS.get(info.type, "terminal") if info else "terminal"
        if info is not None and info.HasField("pty"):
            text += f" {info.pty.index}"
        return "terminal", self.path(m.regf_id) or text, f"{text}, {_access(m.flags)}"

    def _memfd(self, m: pb.memfd_file_entry) -> Words:
        inode = self._memfds.get(m.inode_id)
        text = f"memfd:{name(inode.name)}" if inode else f"memfd {m.inode_id}"
        return "memfd", text, f"{inode.size:,} bytes" if inode else "its entry is missing"

    def _fifo(self, m: pb.fifo_entry) -> Words:
        return "fifo", self.path(m.regf_id or m.id) or f"fifo {m.pipe_id}", ""

    def _epoll(self, m: pb.eventpoll_file_entry) -> Words:
        watched = ", ".join(str(t.tfd) for t in sorted(m.tfd, key=lambda t: t.tfd))
        return "epoll", f"epoll {m.id}", f"watches fd {watched}" if watched else "watches nothing"


def _access(flags: int) -> str:
    if flags & O_PATH:
        return ACCESS[3]
    return ACCESS[min(flags & 3, 2)]


def _unix_name(raw: bytes) -> str:
    """`@name` for an abstract address."""
    text = name(raw)
    return "@" + text[1:] if text.startswith("\0") else text.rstrip("\0")


def address(family: int, words: Any, port: int) -> str:  # noqa: ANN401
    """`127.0.0.1:80`, `[::1]:80`, `*:80`."""
    raw = b"".join(int(word).to_bytes(4, "little") for word in words)
    wanted = 16 if family == socket.AF_INET6 else 4
    if len(raw) != wanted or not any(raw):
        return f"*:{port}"
    text = socket.inet_ntop(family, raw)
    return f"[{text}]:{port}" if wanted == 16 else f"{text}:{port}"


def _inet(m: pb.inet_sk_entry) -> Words:
    if m.family not in (socket.AF_INET, socket.AF_INET6):
        return "socket", f"family {m.family}", errno.errorcode[errno.EAFNOSUPPORT]
    kind = PROTOCOLS.get(m.proto, str(m.proto)) + ("6" if m.family == socket.AF_INET6 else "")
    text = address(m.family, m.src_addr, m.src_port)
    if m.dst_port:
        text += f" -> {address(m.family, m.dst_addr, m.dst_port)}"
    state = TCP_STATES.get(m.state, f"state {m.state}") if m.proto == 6 else ""
    return f"{kind} socket", text, state


def _inotify(m: pb.inotify_file_entry) -> Words:
    return "inotify", f"inotify {m.id}", count(len(m.wd), "watch", "watches")


def _timerfd(m: pb.timerfd_entry) -> Words:
    clock = CLOCKS.get(m.clockid, str(m.clockid))
    if not (m.vsec or m.vnsec):
        return "timerfd", clock, "not armed"
    return "timerfd", clock, f"{m.vsec + m.vnsec / 1e9:.3f} s left"


def _signals(mask: int) -> str:
    return ", ".join(str(i + 1) for i in range(64) if mask >> i & 1)


RULES: Mapping[str, Callable[[Any], Words]] = {
    "PIPE": lambda m: ("pipe", f"pipe:[{m.pipe_id}]", f"{_access(m.flags)} end"),
    "INETSK": _inet,
    "EVENTFD": lambda m: ("eventfd", f"eventfd {m.id}", f"counter {m.counter}"),
    "SIGNALFD": lambda m: ("signalfd", f"signalfd {m.id}", f"signals {_signals(m.sigmask)}"),
    "INOTIFY": _inotify,
    "FANOTIFY": lambda m: ("fanotify", f"fanotify {m.id}", count(len(m.mark), "mark")),
    "TIMERFD": _timerfd,
    "NETLINKSK": lambda m: ("netlink socket", f"protocol {m.protocol}", f"port {m.portid}"),
    "PACKETSK": lambda m: ("packet socket", f"protocol {m.protocol:#06x}", ""),
    "NS": lambda m: ("namespace", f"namespace {m.ns_id}", ""),
    "TUNF": lambda m: ("tun device", name(m.netdev), ""),
    "EXT": lambda m: ("external", f"id {m.id}", "comes from outside"),
    "BPFMAP": lambda m: ("bpf map", name(m.map_name), count(m.max_entries, "entry", "entries")),
    "PIDFD": lambda m: ("pidfd", f"of task {m.nspid}", ""),
}

# SPDX-License-Identifier: Apache-2.0
"""Kinds of image files: magic, order of messages, and the bytes that follow a message.

Facts (seen in images of CRIU 4.2, and in what crit makes of crafted ones):

- Most files are one message type, repeated: u32 length, message, and so on to the end.
- pagemap: pagemap_head first, then pagemap_entry.
- ghost-file: ghost_file_entry; if `chunks` is set, ghost_chunk_entry with `len` bytes each,
  else the rest of the file is the contents.
- ipcns-msg: ipc_msg_entry, then `qnum` times ipc_msg with its text.
- Payloads: pipe data `bytes`; socket queues `length`; tcp-stream `inq_len` + `outq_len`; bpf maps
  `keys_bytes` + `values_bytes`; semaphores 2 bytes each, padded to 8; message text padded to 8;
  System V memory `size` padded to 4, unless `in_pagemaps` is set.
"""

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from torpor.engine.images.magic import Magic
from torpor.engine.images.proto import criu_pb2 as pb

REST = -1
"""A payload that runs to the end of the file."""


@dataclass(frozen=True, slots=True)
class Expect:
    """What comes next: a message of `type`; the file may end before it if `may_end`."""

    type: type[Message]
    may_end: bool = True


Grammar = Generator[Expect, Message, None]
"""Yields what comes next and is sent what came; returns where the file has to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of image file. `family` is None for the inventory, which has one word only."""

    name: str
    magic: Magic
    family: Magic | None
    message: type[Message]
    grammar: Callable[[], Grammar]


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes behind a message: how many belong to it, and how many more pad them."""

    size: int
    padding: int = 0


NO_PAYLOAD = Payload(0)


def file_name(name: str) -> str:
    """Name of the file of the image `name`: all but the counters end in .img."""
    return name if name in SERVICE else f"{name}.img"


def kind_of(name: str) -> Kind | None:
    """Kind of the image `name` (no .img), or None when it is not messages (pages, tar, netlink)."""
    if (kind := BY_STEM.get(name)) is not None:
        return kind
    match = NUMBERED.fullmatch(name)
    return BY_PREFIX.get(match[1]) if match else None


def payload_of(message: Message) -> Payload:
    """The bytes that belong behind `message`."""
    rule = PAYLOADS.get(type(message))
    return rule(message) if rule else NO_PAYLOAD


def _padded(size: int, unit: int) -> Payload:
    return Payload(size, -size % unit)


def _repeat(message: type[Message]) -> Callable[[], Grammar]:
    def grammar() -> Grammar:
        while True:
            yield Expect(message)

    return grammar


def _pagemap() -> Grammar:
    yield Expect(pb.pagemap_head, may_end=False)
    while True:
        yield Expect(pb.pagemap_entry)


def _ghost_file() -> Grammar:
    head = yield Expect(pb.ghost_file_entry, may_end=False)
    assert isinstance(head, pb.ghost_file_entry)
    while head.chunks:
        yield Expect(pb.ghost_chunk_entry)


def _message_queues() -> Grammar:
    while True:
        queue = yield Expect(pb.ipc_msg_entry)
        assert isinstance(queue, pb.ipc_msg_entry)
        for _ in range(queue.qnum):
            yield Expect(pb.ipc_msg, may_end=False)


def _kind(
    magic: Magic, message: type[Message], grammar: Callable[[], Grammar] | None = None
) -> Kind:
    family: Magic | None = Magic.IMG_COMMON
    if magic is Magic.INVENTORY:
        family = None
    elif magic in (Magic.STATS, Magic.IRMAP_CACHE):
        family = Magic.IMG_SERVICE
    return Kind(
        name=magic.name,
        magic=magic,
        family=family,
        message=message,
        grammar=grammar or _repeat(message),
    )


# Any: each rule takes its own message, the key beside it
PAYLOADS: Mapping[type[Message], Callable[[Any], Payload]] = {
    pb.pipe_data_entry: lambda m: Payload(m.bytes),
    pb.sk_packet_entry: lambda m: Payload(m.length),
    pb.tcp_stream_entry: lambda m: Payload(m.inq_len + m.outq_len),
    pb.bpfmap_data_entry: lambda m: Payload(m.keys_bytes + m.values_bytes),
    pb.ghost_file_entry: lambda m: Payload(0 if m.chunks else REST),
    pb.ghost_chunk_entry: lambda m: Payload(m.len),
    pb.ipc_sem_entry: lambda m: _padded(m.nsems * 2, 8),
    pb.ipc_msg: lambda m: _padded(m.msize, 8),
    pb.ipc_shm_entry: lambda m: Payload(0) if m.in_pagemaps else _padded(m.size, 4),
}

BY_STEM: Mapping[str, Kind] = {
    "apparmor": _kind(Magic.APPARMOR, pb.apparmor_entry),
    "bpfmap-data": _kind(Magic.BPFMAP_DATA, pb.bpfmap_data_entry),
    "bpfmap-file": _kind(Magic.BPFMAP_FILE, pb.bpfmap_file_entry),
    "cgroup": _kind(Magic.CGROUP, pb.cgroup_entry),
    "cpuinfo": _kind(Magic.CPUINFO, pb.cpuinfo_entry),
    "eventfd": _kind(Magic.EVENTFD_FILE, pb.eventfd_file_entry),
    "eventpoll": _kind(Magic.EVENTPOLL_FILE, pb.eventpoll_file_entry),
    "eventpoll-tfd": _kind(Magic.EVENTPOLL_TFD, pb.eventpoll_tfd_entry),
    "ext-files": _kind(Magic.EXT_FILES, pb.ext_file_entry),
    "fanotify": _kind(Magic.FANOTIFY_FILE, pb.fanotify_file_entry),
    "fanotify-mark": _kind(Magic.FANOTIFY_MARK, pb.fanotify_mark_entry),
    "fifo": _kind(Magic.FIFO, pb.fifo_entry),
    "fifo-data": _kind(Magic.FIFO_DATA, pb.pipe_data_entry),
    "filelocks": _kind(Magic.FILE_LOCKS, pb.file_lock_entry),
    "files": _kind(Magic.FILES, pb.file_entry),
    "inetsk": _kind(Magic.INETSK, pb.inet_sk_entry),
    "inotify": _kind(Magic.INOTIFY_FILE, pb.inotify_file_entry),
    "inotify-wd": _kind(Magic.INOTIFY_WD, pb.inotify_wd_entry),
    "inventory": _kind(Magic.INVENTORY, pb.inventory_entry),
    "irmap-cache": _kind(Magic.IRMAP_CACHE, pb.irmap_cache_entry),
    "memfd": _kind(Magic.MEMFD_INODE, pb.memfd_inode_entry),
    "netlinksk": _kind(Magic.NETLINK_SK, pb.netlink_sk_entry),
    "ns-files": _kind(Magic.NS_FILES, pb.ns_file_entry),
    "packetsk": _kind(Magic.PACKETSK, pb.packet_sock_entry),
    "pidfd": _kind(Magic.PIDFD, pb.pidfd_entry),
    "pipes": _kind(Magic.PIPES, pb.pipe_entry),
    "pipes-data": _kind(Magic.PIPES_DATA, pb.pipe_data_entry),
    "pstree": _kind(Magic.PSTREE, pb.pstree_entry),
    "reg-files": _kind(Magic.REG_FILES, pb.reg_file_entry),
    "remap-fpath": _kind(Magic.REMAP_FPATH, pb.remap_file_path_entry),
    "seccomp": _kind(Magic.SECCOMP, pb.seccomp_entry),
    "signalfd": _kind(Magic.SIGNALFD, pb.signalfd_entry),
    "sk-queues": _kind(Magic.SK_QUEUES, pb.sk_packet_entry),
    "stats-dump": _kind(Magic.STATS, pb.stats_entry),
    "stats-restore": _kind(Magic.STATS, pb.stats_entry),
    "timerfd": _kind(Magic.TIMERFD, pb.timerfd_entry),
    "tty": _kind(Magic.TTY_FILES, pb.tty_file_entry),
    "tty-data": _kind(Magic.TTY_DATA, pb.tty_data_entry),
    "tty-info": _kind(Magic.TTY_INFO, pb.tty_info_entry),
    "tunfile": _kind(Magic.TUNFILE, pb.tunfile_entry),
    "unixsk": _kind(Magic.UNIXSK, pb.unix_sk_entry),
}
"""Files that a dump has once."""

BY_PREFIX: Mapping[str, Kind] = {
    "autofs": _kind(Magic.AUTOFS, pb.autofs_entry),
    "binfmt-misc": _kind(Magic.BINFMT_MISC, pb.binfmt_misc_entry),
    "core": _kind(Magic.CORE, pb.core_entry),
    "creds": _kind(Magic.CREDS, pb.creds_entry),
    "fdinfo": _kind(Magic.FDINFO, pb.fdinfo_entry),
    "fs": _kind(Magic.FS, pb.fs_entry),
    "ghost-file": _kind(Magic.GHOST_FILE, pb.ghost_file_entry, _ghost_file),
    "ids": _kind(Magic.IDS, pb.task_kobj_ids_entry),
    "ipcns-msg": _kind(Magic.IPCNS_MSG, pb.ipc_msg_entry, _message_queues),
    "ipcns-sem": _kind(Magic.IPCNS_SEM, pb.ipc_sem_entry),
    "ipcns-shm": _kind(Magic.IPCNS_SHM, pb.ipc_shm_entry),
    "ipcns-var": _kind(Magic.IPC_VAR, pb.ipc_var_entry),
    "itimers": _kind(Magic.ITIMERS, pb.itimer_entry),
    "mm": _kind(Magic.MM, pb.mm_entry),
    "mountpoints": _kind(Magic.MNTS, pb.mnt_entry),
    "netdev": _kind(Magic.NETDEV, pb.net_device_entry),
    "netns": _kind(Magic.NETNS, pb.netns_entry),
    "pagemap": _kind(Magic.PAGEMAP, pb.pagemap_head, _pagemap),
    "pagemap-shmem": _kind(Magic.PAGEMAP, pb.pagemap_head, _pagemap),
    "pidns": _kind(Magic.PIDNS, pb.pidns_entry),
    "posix-timers": _kind(Magic.POSIX_TIMERS, pb.posix_timer_entry),
    "rlimit": _kind(Magic.RLIMIT, pb.rlimit_entry),
    "sigacts": _kind(Magic.SIGACT, pb.sa_entry),
    "signal-p": _kind(Magic.SIGNAL, pb.siginfo_entry),
    "signal-s": _kind(Magic.SIGNAL, pb.siginfo_entry),
    "tcp-stream": _kind(Magic.TCP_STREAM, pb.tcp_stream_entry),
    "timens": _kind(Magic.TIMENS, pb.timens_entry),
    "userns": _kind(Magic.USERNS, pb.userns_entry),
    "utsns": _kind(Magic.UTSNS, pb.utsns_entry),
    "vmas": _kind(Magic.VMAS, pb.vma_entry),
}
"""Files that a dump has by number: of a task, a namespace, a file."""

SERVICE = ("stats-dump", "stats-restore", "cpuinfo.img")
"""What a directory may have besides a dump."""

NUMBERED = re.compile(r"([a-z]+(?:-[a-z]+)*)-[0-9a-f]+")

# SPDX-License-Identifier: Apache-2.0
"""Calls on a descriptor of ours that shares its open file description with a task.

The description belongs to the task: nothing here changes its flags or its position.
Results are raw (sockaddrs, option values); errors are KernelError with the call's name.
"""

import ctypes
import errno
import fcntl
import os
import select
import struct
from array import array

from torpor.engine import native
from torpor.engine.errors import KernelError, Refused
from torpor.engine.kind import Message

SOL_SOCKET = 1
SO_REUSEADDR, SO_LINGER, SO_TYPE, SO_DOMAIN, SO_PEEK_OFF, SO_GET_FILTER = 2, 13, 3, 39, 42, 26
SO_ACCEPTCONN, SO_NETNS_COOKIE = 30, 71
SCM_RIGHTS, SCM_CREDENTIALS = 1, 2
AF_UNIX, AF_NETLINK = 1, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET = 1, 2, 5
FIONREAD = 0x541B
MSG_PEEK, MSG_CTRUNC, MSG_TRUNC, MSG_DONTWAIT = 2, 8, 0x20, 0x40
MSG_CMSG_CLOEXEC = 0x40000000
SPLICE_F_NONBLOCK = 2
F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
NR_OPENAT2 = 437  # the same number on every architecture
MCAST_MSFILTER, MCAST_EXCLUDE, MOST_SOURCES = 48, 0, 64
POLLERR, POLLRDHUP = 8, 0x2000
SOCKADDR_ROOM = 128
CONTROL_ROOM = 4096
"""Holds the most descriptors that one message can carry (SCM_MAX_FD is 253) and more."""
MESSAGE_ROOM = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.tee.restype = ctypes.c_ssize_t
_libc.tee.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint]
_libc.recvmsg.restype = ctypes.c_ssize_t
_libc.recvmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Msghdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


def kernel_error(call: str, subject: str, number: int = 0) -> KernelError:
    """The error for a libc call that has just failed."""
    return KernelError(f"{call} failed", errno=number or ctypes.get_errno(), subject=subject)


def statfs_magic(path: bytes) -> int:
    """f_type of statfs(2), 0 when it cannot be asked."""
    room = ctypes.create_string_buffer(256)
    if _libc.statfs(path, room) != 0:
        return 0
    return int(ctypes.cast(room, ctypes.POINTER(ctypes.c_long))[0])


def open_beneath(root_fd: int, path: str, flags: int) -> int:
    """openat2(2) with ``root_fd`` as the root directory of every symlink on the way.

    Raises FileNotFoundError and its kin.
    """
    how = struct.pack("<QQQ", flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    fd = _libc.syscall(NR_OPENAT2, root_fd, name, how, ctypes.c_size_t(len(how)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(fd)


def open_by_handle(mount_fd: int, handle_type: int, handle: bytes) -> int:
    """open_by_handle_at(2), O_PATH; -1 when it does not go (no right, stale, other fs)."""
    room = struct.pack("<Ii", len(handle), handle_type) + handle
    return int(_libc.open_by_handle_at(mount_fd, room, os.O_PATH | os.O_CLOEXEC))


class EpollSlot(ctypes.Structure):
    """struct kcmp_epoll_slot."""

    _fields_ = [
        ("efd", ctypes.c_uint32), ("tfd", ctypes.c_uint32), ("toff", ctypes.c_uint32)
    ]  # fmt: skip


def address_of(slot: EpollSlot) -> int:
    """Address of a struct, for a call that takes it as a number. Keep the struct alive."""
    return ctypes.addressof(slot)


def getsockopt(fd: int, level: int, option: int, size_bytes: int, subject: str) -> bytes | None:
    """Raw value of an option, None when the socket does not know it."""
    is_filter = level == SOL_SOCKET and option == SO_GET_FILTER
    # This one option counts in instructions of eight bytes, and tells how many there are when
    # there is no room (sk_get_filter, v6.8).
    size = ctypes.c_uint32(0 if is_filter else size_bytes)
    if is_filter and _libc.getsockopt(fd, level, option, None, ctypes.byref(size)) == 0:
        if not size.value:
            return b""
        size_bytes = 8 * size.value
    room = ctypes.create_string_buffer(max(size_bytes, 1))
    if _libc.getsockopt(fd, level, option, room, ctypes.byref(size)) != 0:
        if ctypes.get_errno() in native.UNKNOWN_OPTION:
            return None
        raise kernel_error(f"getsockopt({level}, {option})", subject)
    return room.raw[: size.value * (8 if is_filter else 1)]


def sockname(fd: int, subject: str) -> bytes:
    """getsockname(2), raw."""
    address = _address(_libc.getsockname, fd)
    if address is None:
        raise kernel_error("getsockname", subject)
    return address


def peername(fd: int) -> bytes | None:
    """getpeername(2), raw; None when not connected."""
    return _address(_libc.getpeername, fd)


def _address(call: "ctypes._NamedFuncPointer", fd: int) -> bytes | None:
    room = ctypes.create_string_buffer(SOCKADDR_ROOM)
    size = ctypes.c_uint32(SOCKADDR_ROOM)
    if call(fd, room, ctypes.byref(size)) != 0:
        return None
    return room.raw[: size.value]


def ioctl(fd: int, request: int, buffer: bytes, subject: str) -> bytes:
    """The buffer after the call."""
    room = bytearray(buffer)
    try:
        fcntl.ioctl(fd, request, room, True)
    except OSError as error:
        raise kernel_error(f"ioctl({request:#x})", subject, error.errno or 0) from error
    return bytes(room)


def fcntl_value(fd: int, command: int, argument: int, subject: str) -> int:
    """fcntl(2) with a number."""
    try:
        return fcntl.fcntl(fd, command, argument)
    except OSError as error:
        raise kernel_error(f"fcntl({command})", subject, error.errno or 0) from error


def fcntl_buffer(fd: int, command: int, buffer: bytes, subject: str) -> bytes | None:
    """fcntl(2) with a buffer, None when the command is not known."""
    try:
        return fcntl.fcntl(fd, command, buffer)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise kernel_error(f"fcntl({command})", subject, error.errno or 0) from error


def poll_events(fd: int) -> int:
    """Revents right now."""
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP)
    return sum(events for _, events in poller.poll(0))


def queue_attributes(fd: int, subject: str) -> tuple[int, int, int]:
    """mq_maxmsg, mq_msgsize and mq_curmsgs of mq_getattr(3)."""
    room = ctypes.create_string_buffer(64)
    if _libc.mq_getattr(fd, room) != 0:
        raise kernel_error("mq_getattr", subject)
    _, maximum, size, current = struct.unpack_from("<4q", room.raw)
    return maximum, size, current


def timerfd_gettime(fd: int, subject: str) -> None:
    """Have the kernel count what a periodic timer has missed, as a read would."""
    if _libc.timerfd_gettime(fd, ctypes.create_string_buffer(32)) != 0:
        raise kernel_error("timerfd_gettime", subject)


def tee_pipe(reader: int, subject: str) -> list[bytes]:
    """What is queued in a pipe; it stays there. ``reader`` is a read end.

    A stream is one piece. tee(2) keeps the borders of packets (O_DIRECT), and so does read(2),
    which returns at the end of each.
    """
    queued = struct.unpack("<i", ioctl(reader, FIONREAD, bytes(4), subject))[0]
    if queued == 0:
        return []
    ours, into = os.pipe2(os.O_CLOEXEC)
    try:
        # Each buffer of theirs takes one slot of ours, so equal sizes are enough.
        size = fcntl.fcntl(reader, F_GETPIPE_SZ)
        if size > fcntl.fcntl(into, F_GETPIPE_SZ):
            fcntl_value(into, F_SETPIPE_SZ, size, subject)
        copied = _libc.tee(reader, into, queued, SPLICE_F_NONBLOCK)
        if copied < 0:
            raise kernel_error("tee", subject)
        pieces: list[bytes] = []
        while sum(map(len, pieces)) < copied:
            pieces.append(os.read(ours, copied))
    finally:
        os.close(ours)
        os.close(into)
    if copied != queued:
        raise KernelError(
            f"tee copied {copied} of {queued} bytes", errno=errno.EAGAIN, subject=subject
        )
    return pieces


def peek_messages(fd: int, subject: str, rights: list[list[int]] | None = None) -> list[Message]:
    """Queued messages of a socket, each with its sender; they stay queued.

    Of a stream the chunks are those in which the kernel hands it out: one ends with the bytes
    that have descriptors, and where those bytes begin cannot be seen. Descriptors are ours to
    close when ``rights`` is given: a list is added for each message that has some.
    SO_PEEK_OFF belongs to the task: it is set back at once.
    A message of no bytes behind another one is seen once only, and not by a later look
    (__skb_try_recv_from_queue, v6.18).
    """
    kind = _option(fd, SO_TYPE)
    if _option(fd, SO_ACCEPTCONN):
        return []  # what waits there are connections
    if poll_events(fd) & POLLERR and kind != SOCK_STREAM:
        return []  # a read would take the pending error away from the task
    if kind == SOCK_DGRAM or _option(fd, SO_DOMAIN) == AF_NETLINK:
        return _peek_datagrams(fd, subject, rights)
    queued = struct.unpack("<i", ioctl(fd, FIONREAD, bytes(4), subject))[0]
    if kind == SOCK_SEQPACKET:
        return _peek_datagrams(fd, subject, rights)
    if queued <= 0:
        return []
    if _option(fd, SO_DOMAIN) == AF_UNIX:
        return _peek_from_offset(fd, subject, queued, rights)
    first = _peek_one(fd, queued, subject, rights)
    return [] if first is None else [first]


def _peek_datagrams(fd: int, subject: str, rights: list[list[int]] | None) -> list[Message]:
    if _option(fd, SO_PEEK_OFF) is None:
        first = _peek_one(fd, MESSAGE_ROOM, subject, rights)
        return [] if first is None else [first]
    return _peek_from_offset(fd, subject, None, rights)


def _peek_from_offset(
    fd: int, subject: str, total: int | None, rights: list[list[int]] | None
) -> list[Message]:
    """All messages, by an offset that the kernel moves on.

    A stream is read up to ``total``: one byte more and the kernel would hand out (and
    forget) a pending error.
    """
    before = _option(fd, SO_PEEK_OFF)
    _set_option(fd, SO_PEEK_OFF, 0, subject)
    found: list[Message] = []
    done = 0
    try:
        while total is None or done < total:
            room = MESSAGE_ROOM if total is None else total - done
            message = _peek_one(fd, room, subject, rights)
            if message is None or not (message.data or message.fds or _may_be_empty(fd)):
                break
            done += len(message.data)
            found.append(message)
    finally:
        _set_option(fd, SO_PEEK_OFF, -1 if before is None else before, subject)
    return found


def _may_be_empty(fd: int) -> bool:
    """Nothing is a message of no bytes, but of what was shut it is the end of file."""
    kind = _option(fd, SO_TYPE)
    return kind == SOCK_DGRAM or (kind == SOCK_SEQPACKET and not poll_events(fd) & POLLRDHUP)


def _peek_one(
    fd: int, size_bytes: int, subject: str, rights: list[list[int]] | None
) -> Message | None:
    """One message; None when nothing is queued."""
    data = ctypes.create_string_buffer(max(size_bytes, 1))
    name = ctypes.create_string_buffer(SOCKADDR_ROOM)
    control = ctypes.create_string_buffer(CONTROL_ROOM)
    iov = _Iovec(ctypes.cast(data, ctypes.c_void_p), size_bytes)
    header = _Msghdr(
        ctypes.cast(name, ctypes.c_void_p), SOCKADDR_ROOM, ctypes.pointer(iov), 1,
        ctypes.cast(control, ctypes.c_void_p), CONTROL_ROOM, 0,
    )  # fmt: skip
    flags = MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC
    got = _libc.recvmsg(fd, ctypes.byref(header), flags)
    if got < 0:
        if ctypes.get_errno() in (errno.EAGAIN, errno.ENOTCONN, errno.EINVAL):
            return None
        raise kernel_error("recvmsg(MSG_PEEK)", subject)
    fds, creds = _control(control.raw[: header.control_size])
    if rights is not None and fds:
        rights.append(fds)
    else:
        for descriptor in fds:
            os.close(descriptor)
    if header.flags & MSG_TRUNC:
        raise Refused(
            f"a queued message is larger than {size_bytes} bytes",
            subject=subject,
            remedy="let the task read it before the checkpoint",
        )
    address = name.raw[: header.name_size]
    return Message(data=ctypes.string_at(data, got), address=address, fds=len(fds), creds=creds)


def _control(control: bytes) -> tuple[list[int], tuple[int, int, int] | None]:
    """Descriptors and credentials of control messages (struct cmsghdr, 8-byte aligned)."""
    fds: list[int] = []
    creds = None
    offset = 0
    while offset + 16 <= len(control):
        size, level, kind = struct.unpack_from("<Qii", control, offset)
        payload = control[offset + 16 : offset + size]
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds += array("i", payload[: len(payload) & ~3])
        elif level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            creds = struct.unpack("<iII", payload)
        offset += max(size + 7 & ~7, 16)
    return fds, creds


def netns_cookie(fd: int) -> bytes | None:
    """A number of the socket's network namespace; None before v5.14."""
    return getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, 8, "")


def source_filter(
    fd: int, level: int, interface: int, group: bytes
) -> tuple[bool, tuple[bytes, ...]] | None:
    """MCAST_MSFILTER: struct group_filter, with a sockaddr_storage for each source."""
    family, at = (2, 4) if len(group) == 4 else (10, 8)
    address = struct.pack("<H", family).ljust(at, b"\0") + group
    head = struct.pack("<I4x128sII", interface, address, 0, MOST_SOURCES)
    room = ctypes.create_string_buffer(head + bytes(128 * MOST_SOURCES))
    size = ctypes.c_uint32(len(head) + 128 * MOST_SOURCES)
    if _libc.getsockopt(fd, level, MCAST_MSFILTER, room, ctypes.byref(size)) != 0:
        return None
    mode, count = struct.unpack_from("<II", room.raw, len(head) - 8)
    starts = (len(head) + 128 * n + at for n in range(min(count, MOST_SOURCES)))
    return mode == MCAST_EXCLUDE, tuple(room.raw[s : s + len(group)] for s in starts)


def set_reusable(fd: int, subject: str) -> None:
    """SO_REUSEADDR."""
    _set_option(fd, SO_REUSEADDR, 1, subject)


def set_linger_zero(fd: int, subject: str) -> None:
    """The last close(2) of the socket sends a RST and leaves no TIME_WAIT."""
    if _libc.setsockopt(fd, SOL_SOCKET, SO_LINGER, struct.pack("<ii", 1, 0), 8) != 0:
        raise kernel_error("setsockopt(SO_LINGER)", subject)


def _option(fd: int, option: int) -> int | None:
    raw = getsockopt(fd, SOL_SOCKET, option, 4, "")
    return None if raw is None else int(struct.unpack("<i", raw)[0])


def _set_option(fd: int, option: int, value: int, subject: str) -> None:
    room = struct.pack("<i", value)
    if _libc.setsockopt(fd, SOL_SOCKET, option, room, 4) != 0:
        raise kernel_error(f"setsockopt({option})", subject)

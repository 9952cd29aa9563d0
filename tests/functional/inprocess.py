# SPDX-License-Identifier: Apache-2.0
"""Runs kinds of files against the kernel inside one forked child: no engine, no root.

The child makes descriptors, collects, encodes, decodes, closes them, runs the planned operations
as plain system calls of its own, and compares what /proc shows before and after.
"""

import ctypes
import fcntl
import os
import select
import struct
import tempfile
import traceback
from pathlib import Path

from torpor.engine.errors import KernelError
from torpor.engine.files import table
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.kernel.recorded import RecordedFd, RecordedImages
from torpor.engine.kind import DumpContext, PlanContext
from torpor.engine.program.ops import Data, Expect, Slot

LIBC = ctypes.CDLL(None, use_errno=True)
SERVICE = 600


class OwnFd(RecordedFd):
    """FdView of a descriptor of this very process."""

    def fcntl(self, command, argument=0):
        result = LIBC.syscall(syscall_number("fcntl"), self.fd, command, ctypes.c_long(argument))
        if result < 0:
            raise KernelError("fcntl failed", errno=ctypes.get_errno(), subject=self.subject)
        return result

    def fcntl_bytes(self, command, buffer):
        room = ctypes.create_string_buffer(buffer, len(buffer))
        if LIBC.syscall(syscall_number("fcntl"), self.fd, command, room) < 0:
            return None
        return room.raw

    def ioctl(self, request, buffer):
        return fcntl.ioctl(self.fd, request, buffer)

    def poll_events(self):
        poller = select.poll()
        poller.register(self.fd, select.POLLIN | select.POLLOUT)
        return next((events for _, events in poller.poll(0)), 0)

    def path_stat(self, path):
        try:
            found = Path(path).lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def file_content(self, limit_bytes):
        again = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY)
        try:
            return os.pread(again, limit_bytes + 1, 0)
        finally:
            os.close(again)

    def pipe_pieces(self):
        reader, writer = os.pipe()
        size = fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
        moved = LIBC.tee(self.fd, writer, size, 2)  # SPLICE_F_NONBLOCK
        data = [os.read(reader, moved)] if moved > 0 else []
        os.close(reader)
        os.close(writer)
        return data

    def int_options(self, wanted):
        found = [self.getsockopt(level, option, 4) for level, option in wanted]
        return [
            None if raw is None else int.from_bytes(raw, "little", signed=len(raw) == 4)
            for raw in found
        ]

    def watch_path(self, device, inode, handle_type, handle):
        return self.watches.get(inode)

    def epoll_targets(self):
        found = []
        for line in self.info:
            if line.startswith("tfd:"):
                words = line.replace(":", " ").split()
                found.append((int(words[1]), int(words[3], 16), int(words[5], 16), 0))
        return found

    def file_order(self, other):
        return (0, -1, 1)[LIBC.syscall(312, os.getpid(), os.getpid(), 0, self.fd, other.fd)]

    def epoll_target_is(self, tfd, index, other):
        slot = struct.pack("<III", self.fd, tfd, index)
        pid = os.getpid()
        return LIBC.syscall(312, pid, pid, 7, other.fd, slot) == 0


def own_fd(fd, **more):
    """View of descriptor ``fd`` of this process."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    found = os.fstat(fd)
    heads = dict(line.split(":", 1) for line in info[:4])
    room = ctypes.create_string_buffer(256)
    LIBC.fstatfs(fd, room)
    return OwnFd(
        pid=os.getpid(), ns_pid=os.getpid(), fd=fd, link=os.readlink(f"/proc/self/fd/{fd}"),
        flags=int(heads["flags"], 8), pos=int(heads["pos"]), info=tuple(info[4:]),
        st_mode=found.st_mode, st_dev=found.st_dev, st_ino=found.st_ino, st_rdev=found.st_rdev,
        st_size=found.st_size, st_nlink=found.st_nlink, st_uid=found.st_uid, st_gid=found.st_gid,
        fs_magic=struct.unpack("<q", room.raw[:8])[0], **more,
    )  # fmt: skip


def run(ops):
    """The operations as system calls of this process."""
    slots, rooms = {}, {}

    def value(arg):
        if isinstance(arg, Slot):
            return ctypes.c_long(slots[arg.name])
        if isinstance(arg, Data):
            if id(arg) not in rooms:
                size = max(len(arg.content), 1)
                rooms[id(arg)] = (ctypes.create_string_buffer(arg.content, size), arg)
                for offset, target in arg.pointers:
                    value(target)
                    address = ctypes.addressof(rooms[id(target)][0])
                    rooms[id(arg)][0][offset : offset + 8] = struct.pack("<Q", address)
            return rooms[id(arg)][0]
        return ctypes.c_long(int(arg))

    for op in ops:
        if op.call == "@load32":
            room, offset = value(op.args[0]), op.args[1] if len(op.args) > 1 else 0
            result = struct.unpack_from("<i", room.raw, offset)[0]
        else:
            result = LIBC.syscall(syscall_number(op.call), *(value(a) for a in op.args))
            result = -ctypes.get_errno() if result < 0 else result
        is_bad = op.expect is Expect.OK and -4096 < result < 0
        if is_bad or (op.expect is Expect.EQUAL and result != op.want):
            raise AssertionError(f"{op.describe()} gave {result}")
        if op.yields is not None:
            slots[op.yields.name] = result


def forked(body):
    """Run ``body`` in a child; its exception fails the test."""
    with tempfile.TemporaryDirectory(prefix="torpor-files-") as place:
        _forked(body, place)


def _forked(body, place):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = b""
        tempfile.tempdir = place
        try:
            os.close(reader)
            os.dup2(writer, 900)
            os.closerange(3, 900)
            body()
        except BaseException:  # noqa: BLE001 (told to the parent)
            text = traceback.format_exc().encode()
        os.write(900, text)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    assert not text, text.decode()


def round_trip(kinds, fds, *, watches=None, hide=(), **context_more):
    """Dump ``fds`` of this process, close them, restore them; returns (before, after, result)."""
    me = os.getpid()
    context = DumpContext(
        tcp=None,
        container=False,
        ghost_limit_bytes=1 << 24,
        tasks={me: me},
        owners={me: me},
        **context_more,
    )
    views = [own_fd(fd, watches=watches or {}) for fd in fds]
    one = table.Table(number=1, tasks=(me,), views=views)
    result = table.collect_tables([one], kinds, context)
    assert not result.refusals, [str(r) for r in result.refusals]
    images = RecordedImages()
    table.encode_tables(result, kinds, images)
    before = {fd: shown(fd, hide) for fd in fds}
    for fd in fds:
        os.close(fd)
    restore(kinds, images, me)
    after = {fd: shown(fd, hide) for fd in fds}
    assert not [int(f) for f in os.listdir("/proc/self/fd") if SERVICE <= int(f) < 900]
    return before, after, result


def restore(kinds, images, me):
    """Run the plans of what the images hold."""
    placements = table.decode_tables(images, {me: 1})
    holders = table.holders_of(placements)
    context = PlanContext(
        fds={file_id: SERVICE + i for i, file_id in enumerate(holders)},
        holders=holders, spare_fd=SERVICE + len(holders),
    )  # fmt: skip
    states = {kind.name: kind.decode(images) for kind in kinds}
    for kind in kinds:
        run(kind.plan(states[kind.name], context))
    keep = [int(f) for f in os.listdir("/proc/self/fd") if not SERVICE <= int(f) < 900]
    run(table.placement(placements[me], context, keep=keep))
    for kind in kinds:
        run([late.op for late in kind.late(states[kind.name], context)])
    run([late.op for late in table.late_locks(table.decode_locks(images))])


def shown(fd, hide=()):
    """What /proc shows of a descriptor, without what a kernel object may not keep."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    hidden = ("ino:", "mnt_id:", "eventfd-id:", *hide)
    kept = tuple(line for line in info if not line.startswith(hidden))
    link = os.readlink(f"/proc/self/fd/{fd}")
    found = os.fstat(fd)
    return {
        "link": link.split("[")[0] if link.startswith(("pipe:", "socket:")) else link,
        "info": kept, "mode": found.st_mode, "uid": found.st_uid, "size": found.st_size,
    }  # fmt: skip

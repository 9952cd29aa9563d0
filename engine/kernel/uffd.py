# SPDX-License-Identifier: Apache-2.0
"""Which pages of a running task are written: userfaultfd's write protection without messages.

Facts (fs/userfaultfd.c, fs/proc/task_mmu.c; probed on v6.18):
- With UFFD_FEATURE_WP_ASYNC (Linux 6.7) the kernel itself takes the protection off a page that is
  written, in the write's fault; PAGEMAP_SCAN tells the written pages (PAGE_IS_WRITTEN) and protects
  them again in one step (PM_SCAN_WP_MATCHING). Nobody waits for anything, so UFFD_USER_MODE_ONLY
  does, which needs no right (vm.unprivileged_userfaultfd may be 0).
- A userfaultfd belongs to the address space that made it. The task makes it by an injected call;
  a copy (pidfd_getfd) registers and scans from outside. The task has the descriptor for some
  microseconds; if we die just then, the task closes it on its way home (`Remote.safe`, parting).
- When the last copy is closed, by death too, areas are unregistered, protections taken off, and
  areas join as before. That holds the address space's lock for 50 ms a GiB of 4 KiB pages, and who
  faults waits for it. To unregister in pieces would be kinder, but splits areas meanwhile, and an
  mremap across two areas fails (EFAULT). For the same reason areas are registered whole, while the
  task stands still: one that has just grown would be split.
- A registered area says `uw` in smaps; a scan with PM_SCAN_CHECK_WPASYNC gives EPERM elsewhere. It
  grows with mremap and the stack, and its parts keep the registration through mprotect. Moved by
  mremap, in a fork's child, after exec, mapped anew at the same place: not registered. brk makes a
  new area behind a registered one. A second userfaultfd gets EBUSY.
- What is not there is not protected; once it is there it counts as written. So does a page that
  was protected and is gone (MADV_DONTNEED).
- A scan that has to tell pages of files from others takes 30 ms a GiB, one that only asks what was
  written 0.4 ms. So what is registered are private anonymous areas: no pages of files in there.
- Protecting takes an area that may be made writable (`mw`), else EPERM.
- A device that writes to pages which it got before they were protected goes unnoticed:
  O_DIRECT, io_submit, io_uring (see `written_behind`).
"""

import errno
import fcntl
import os
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

from torpor.engine import native
from torpor.engine.errors import Denied, Error, KernelError, Refused, Unavailable, Vanished
from torpor.engine.kernel import maps, pagemap, proc, ptrace
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.maps import Vma
from torpor.engine.kernel.remote import Remote

UFFD_API = 0xAA
UFFD_USER_MODE_ONLY = 1
FLAGS_INSIDE = os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY
"""Of the one that a process is made to make."""
WP_UNPOPULATED, WP_ASYNC = 1 << 13, 1 << 15
REGISTER_MODE_WP = 2
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
API, REGISTER = struct.Struct("<QQQ"), struct.Struct("<QQQQ")
FLAG = "uw"
"""In VmFlags."""
TAKEN = frozenset({"um", "uw", "ui"})
USUAL = ("[heap]", "[stack", "[anon:")
Span = tuple[int, int]
STOP_PATIENCE_S = 1.0
O_DIRECT = 0o40000
FLAGS = re.compile(rb"^flags:\s+(\d+)", re.MULTILINE)
BEHIND = ("anon_inode:[io_uring]", "/dev/vfio/", "/dev/infiniband/", "anon_inode:[vfio")
"""What descriptors lead to by which devices get pages for longer than a call."""
RING_AREAS = ("/[aio]", "anon_inode:[io_uring]")


@dataclass(slots=True, kw_only=True)
class Watch:
    """The writes to the private anonymous memory of one process are watched, until `close`."""

    pid: int
    seize: int
    """PTRACE_O_* options for its moments of rest."""
    fd: int = -1
    areas: list[Span] = field(default_factory=list)
    """What is watched, as it was when `cover` looked last."""

    @classmethod
    def open(cls, pid: int, seize: int = 0) -> Self:
        """Begin; the process stands still for a moment. Nothing is watched yet, see `cover`.

        Raises:
            Refused: it cannot be borrowed, or its seccomp filter or a security module forbids it.
            Unavailable: the kernel cannot.
            Vanished: it is gone.
        """
        watch = cls(pid=pid, seize=seize, fd=_made_inside(pid, seize))
        try:
            fcntl.ioctl(watch.fd, UFFDIO_API, API.pack(UFFD_API, WP_ASYNC | WP_UNPOPULATED, 0))
        except OSError as error:
            watch.close()
            raise Unavailable(
                "the kernel cannot track writes",
                subject=f"task {pid}",
                cause=str(error),
                remedy="use Linux 6.7 or newer with CONFIG_USERFAULTFD",
            ) from error
        return watch

    def cover(self) -> list[Span]:
        """Watch every area that can be and is not yet: those. The process stands still for it."""
        fresh, areas = [], []
        with _at_rest(self.pid, self.seize), _pagemap(self.pid) as fd:
            for vma in maps.parse_maps(proc.read_text(self.pid, "maps")):
                area = vma.start, vma.end
                if not may_be_watched(vma):
                    continue
                if is_covered(fd, vma.start):
                    areas.append(area)
                elif self._register(*area):
                    fresh.append(area)
        self.areas = sorted(areas + fresh)
        return fresh

    def close(self) -> None:
        """Undo it all. May be called again."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def _register(self, start: int, end: int) -> bool:
        request = REGISTER.pack(start, end - start, REGISTER_MODE_WP, 0)
        try:
            fcntl.ioctl(self.fd, UFFDIO_REGISTER, request)
        except OSError:  # of a kind that cannot be, or another one's
            return False
        return True


def may_be_watched(vma: Vma) -> bool:
    """A private anonymous area, as far as maps tells."""
    is_special = vma.name.startswith("[") and not vma.name.startswith(USUAL)
    return vma.inode == 0 and not vma.shared and not is_special and not vma.name.startswith("anon_")


def is_covered(fd: int, address: int) -> bool:
    """Whether the area with an address is watched; ``fd`` is a pagemap."""
    try:
        stale_runs(fd, address, address + pagemap.PAGE_SIZE)
    except LookupError:
        return False
    return True


def has_own(vmas: Sequence[Vma]) -> bool:
    """Whether a process that nobody watches uses userfaultfd itself."""
    return any(vma.vm_flags & TAKEN for vma in vmas)


def unmarked(vmas: Sequence[Vma]) -> list[Vma]:
    """The same as if nobody watched."""
    return [
        vma._replace(vm_flags=vma.vm_flags - {FLAG}) if FLAG in vma.vm_flags else vma
        for vma in vmas
    ]


def all_runs(fd: int, start: int, end: int) -> "array[int]":
    """(address, bytes) of all pages of a watched area; from now on they are protected.

    Raises LookupError where it is not watched.
    """
    return _scanned(fd, start, end, pagemap.WP_MATCHING, written=False)


def written_runs(fd: int, start: int, end: int, *, protect: bool) -> "array[int]":
    """(address, bytes) of pages written since they were protected; protected again, if wanted.

    Raises LookupError where it is not watched.
    """
    flags = pagemap.WP_MATCHING if protect else 0
    return _scanned(fd, start, end, flags, written=True)


def stale_runs(fd: int, start: int, end: int) -> "array[int]":
    """(address, bytes) of all that is not as it was protected: written, or gone, or never there.

    Raises LookupError where it is not watched.
    """
    with _watched():
        found = native.scan_pages(
            fd,
            start,
            end,
            required=int(pagemap.Page.WRITTEN),
            returned=int(pagemap.Page.WRITTEN),
            flags=pagemap.CHECK_WP_ASYNC,
        )
    return pagemap.pairs(found)


def _scanned(fd: int, start: int, end: int, flags: int, *, written: bool) -> "array[int]":
    absent = int(pagemap.Page.PFN_ZERO)
    if pagemap.knows_guards():
        absent |= pagemap.Page.GUARD
    with _watched():
        found = native.scan_pages(
            fd,
            start,
            end,
            inverted=absent,
            required=absent | (int(pagemap.Page.WRITTEN) if written else 0),
            any_of=pagemap.OWN_PRESENT,
            returned=0,
            flags=flags | pagemap.CHECK_WP_ASYNC,
        )
    return pagemap.pairs(found)


@contextmanager
def _watched() -> Iterator[None]:
    """EPERM of PM_SCAN_CHECK_WPASYNC is a LookupError."""
    try:
        yield
    except Denied as error:
        raise LookupError("is not watched") from error


def written_behind(pid: int, vmas: Sequence[Vma]) -> str:
    """What lets a device write to memory of a task unseen; empty for nothing.

    Look after pages were protected and before they are copied: who has such pages then, holds
    the descriptor or the ring still.
    """
    for vma in vmas:
        if vma.name.startswith(RING_AREAS):
            return vma.name
    numbers = proc.list_numbers(pid, "fd")
    infos = proc.read_many([(pid, f"fdinfo/{number}") for number in numbers])
    for number, info in zip(numbers, infos, strict=True):
        if isinstance(info, Error):
            continue
        found = FLAGS.search(info)
        direct = found is not None and int(found[1], 8) & O_DIRECT
        with suppress(Vanished):
            link = proc.read_link(pid, f"fd/{number}")
            if direct and link.startswith("/"):
                return f"{link} (O_DIRECT)"
            if link.startswith(BEHIND):
                return link
    return ""


@contextmanager
def _at_rest(pid: int, seize: int) -> Iterator[int]:
    """The process stands still; one of its threads."""
    tids = ptrace.stop_process(pid, seize, STOP_PATIENCE_S)
    try:
        yield tids[0]
    finally:
        ptrace.release_all(tids)


@contextmanager
def _pagemap(pid: int) -> Iterator[int]:
    fd = pagemap.open_pagemap(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _made_inside(pid: int, seize: int) -> int:
    """Our copy of a userfaultfd that the process has made, and has no more."""
    space = AddressSpace.find(pid, maps.parse_maps(proc.read_text(pid, "maps")))
    pidfd = native.pidfd_open(pid)
    try:
        with _at_rest(pid, seize) as tid:
            numbers = set(proc.list_numbers(pid, "fd"))
            free = next(n for n in range(len(numbers) + 1) if n not in numbers)
            with Remote.safe(tid, space, parting=("close", (free,))) as remote:
                number = remote.try_call("userfaultfd", FLAGS_INSIDE)
                if number < 0:
                    raise _refused(pid, -number)
                try:
                    return native.pidfd_getfd(pidfd, number)
                finally:
                    remote.call("close", number)
    finally:
        os.close(pidfd)


def _refused(pid: int, number: int) -> Error:
    if number == errno.ENOSYS:
        return Unavailable(
            "has no userfaultfd",
            subject=f"task {pid}",
            remedy="use a kernel with CONFIG_USERFAULTFD, or another way to take memory",
        )
    if number in (errno.EPERM, errno.EACCES):
        return Refused(
            "may not make a userfaultfd",
            subject=f"task {pid}",
            cause="its seccomp filter or a security module forbids it",
            remedy="permit userfaultfd in its seccomp profile, or take memory in another way",
        )
    return KernelError("userfaultfd failed inside the task", errno=number, subject=f"task {pid}")

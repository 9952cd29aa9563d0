# SPDX-License-Identifier: Apache-2.0
"""Which pages of a task hold something of its own: PAGEMAP_SCAN (Linux 6.7).

Facts: pages that are swapped out or present, and neither a file's nor the zero page, are the
task's own. Of a shared mapping every page that is there counts, because the file is the
memory itself. Guard pages (MADV_GUARD_INSTALL, Linux 6.13) look swapped out; they have a
category of their own since 6.15. Page frame numbers are not used.
Source: Documentation/admin-guide/mm/pagemap.rst (v6.18).
"""

import errno
import os
from array import array
from collections.abc import Sequence
from enum import IntFlag
from functools import cache

from torpor.engine import native
from torpor.engine.errors import Denied, KernelError, Unavailable, Vanished

PAGE_SIZE = 4096


class Page(IntFlag):
    """Categories of a page."""

    WP_ALLOWED = 1
    WRITTEN = 2
    FILE = 4
    PRESENT = 8
    SWAPPED = 16
    PFN_ZERO = 32
    HUGE = 64
    SOFT_DIRTY = 128
    GUARD = 256


WP_MATCHING, CHECK_WP_ASYNC = 1, 2
OWN_ABSENT, OWN_PRESENT = int(Page.FILE | Page.PFN_ZERO), int(Page.PRESENT | Page.SWAPPED)
NEAR = 2 << 20
"""Bytes between two mappings that are looked at in one go."""


def open_pagemap(pid: int) -> int:
    """A descriptor of /proc/PID/pagemap."""
    return _open(pid, "pagemap")


def open_memory(pid: int) -> int:
    """A descriptor of /proc/PID/mem, to read from."""
    return _open(pid, "mem")


def _open(pid: int, name: str) -> int:
    path = f"/proc/{pid}/{name}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise Vanished("is gone", subject=f"task {pid}", cause=f"no {path}") from None
    except PermissionError:
        raise Denied(
            f"{path} may not be read",
            remedy="run as the owner of the task, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        ) from None


def private_runs(fd: int, ranges: Sequence[tuple[int, int]]) -> "array[int]":
    """(address, length) pairs of the own pages of private mappings, given by address.

    One look covers mappings that are near to each other, and what lies between them.
    """
    runs = array("Q")
    span: list[tuple[int, int]] = []
    for one in ranges:
        if span and one[0] - span[-1][1] > NEAR:
            runs += cut(_own_runs(fd, span[0][0], span[-1][1]), span)
            span = []
        span.append(one)
    if span:
        runs += cut(_own_runs(fd, span[0][0], span[-1][1]), span)
    return runs


def cut(runs: "array[int]", ranges: Sequence[tuple[int, int]]) -> "array[int]":
    """What of (address, length) pairs lies in ranges; both are sorted."""
    if len(ranges) == 1:
        return runs
    found = array("Q")
    first, count = 0, len(ranges)
    for start, size in zip(runs[::2], runs[1::2], strict=True):
        end = start + size
        while first < count and ranges[first][1] <= start:
            first += 1
        number = first
        while number < count and ranges[number][0] < end:
            low, high = ranges[number]
            at = max(start, low)
            found.extend((at, min(end, high) - at))
            number += 1
    return found


def _own_runs(fd: int, start: int, end: int) -> "array[int]":
    absent = OWN_ABSENT | (int(Page.GUARD) if knows_guards() else 0)
    return pairs(_scan(fd, start, end, inverted=absent, required=absent, any_of=OWN_PRESENT))


def guard_runs(fd: int, start: int, end: int) -> "array[int]":
    """(address, length) pairs of guard pages; empty where the kernel knows none."""
    if not knows_guards():
        return array("Q")
    return pairs(_scan(fd, start, end, required=Page.GUARD))


@cache
def knows_guards() -> bool:
    """Whether this kernel tells guard pages apart; asked of our own first page."""
    fd = open_pagemap(os.getpid())
    try:
        _scan(fd, 0, PAGE_SIZE, required=Page.GUARD)
    except Unavailable:
        return False
    finally:
        os.close(fd)
    return True


def _scan(
    fd: int, start: int, end: int, *, inverted: int = 0, required: int = 0, any_of: int = 0
) -> "array[int]":
    try:
        return native.scan_pages(
            fd,
            start,
            end,
            inverted=inverted,
            required=required,
            any_of=any_of,
            returned=int(Page.PFN_ZERO),
        )
    except KernelError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            raise Unavailable(
                "the kernel has no PAGEMAP_SCAN for this",
                cause=error.cause,
                remedy="use Linux 6.7 or newer",
            ) from error
        raise


def pairs(triples: "array[int]") -> "array[int]":
    """Drop the category, join what only differs in it."""
    pairs = array("Q")
    for i in range(0, len(triples), 3):
        start, end = triples[i], triples[i + 1]
        if pairs and pairs[-2] + pairs[-1] == start:
            pairs[-1] += end - start
        else:
            pairs.extend((start, end - start))
    return pairs

# SPDX-License-Identifier: Apache-2.0
"""What the parts of the seam have in common: the C module itself, errors, units."""

import errno
import os

from torpor.engine._native import ffi, lib  # noqa: TID251 - this is the one
from torpor.engine.errors import Denied, Error, KernelError, Timeout, Vanished

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "Address",
    "address_of",
    "check",
    "error_for",
    "ffi",
    "lib",
    "new_uncleared",
    "ns",
]

DEFAULT_TIMEOUT_S = 10.0

Address = int
new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


def error_for(code: int, call: str, subject: str, *, cause: str = "") -> Error:
    """The error for a negative result of the seam."""
    number = -code
    if number == errno.ESRCH:
        return Vanished(f"{call} found no such task", subject=subject, cause=cause)
    if number in (errno.EPERM, errno.EACCES):
        return Denied(
            f"{call} was not permitted",
            subject=subject,
            cause=cause or os.strerror(number),
            remedy="run with CAP_SYS_PTRACE, or as the owner of the task",
        )
    if number == errno.ETIMEDOUT:
        return Timeout(f"{call} did not finish in time", subject=subject, cause=cause)
    return KernelError(f"{call} failed", errno=number, subject=subject, cause=cause)


def check(result: int, call: str, task: int) -> int:
    """The result of a call for a task, unless it is an error."""
    if result < 0:
        raise error_for(result, call, f"task {task}")
    return result


def address_of(room: object) -> int:
    """Of what `ffi.new` or `ffi.from_buffer` gave; that has to live on."""
    return int(ffi.cast("uintptr_t", room))


def ns(seconds: float) -> int:
    """Nanoseconds."""
    return int(seconds * 1e9)

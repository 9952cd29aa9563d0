# SPDX-License-Identifier: Apache-2.0
"""What the file system refuses and what images say wrongly, in the engine's words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from struct import error as struct_error

from torpor.engine.errors import BadImage, Denied, KernelError

REMEDIES = {
    errno.ENOSPC: "make room on the file system of the images",
    errno.EDQUOT: "raise the quota of the file system of the images",
    errno.EROFS: "give a directory on a writable file system",
    errno.ENOENT: "give a path that exists",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOTDIR: "give a directory",
}
OTHER = "look what the kernel's log says of that file system"


@contextmanager
def translated(verb: str, subject: str) -> Iterator[None]:
    """Turn an OSError of the body into Denied or KernelError; name what a call of ours wrote."""
    try:
        yield
    except KernelError as error:
        remedy = error.remedy or REMEDIES.get(error.errno, OTHER)
        raise KernelError(
            f"cannot {verb}", errno=error.errno, subject=subject, remedy=remedy
        ) from error
    except OSError as error:
        number = error.errno or errno.EIO
        if number in (errno.EACCES, errno.EPERM):
            raise Denied(
                f"cannot {verb}",
                subject=subject,
                cause=str(error.strerror),
                remedy="give read and write access to the image directory",
            ) from error
        raise KernelError(
            f"cannot {verb}", errno=number, subject=subject, remedy=REMEDIES.get(number, OTHER)
        ) from error


@contextmanager
def readable(subject: str) -> Iterator[None]:
    """What an image says must fit into the body's structures; else it is a BadImage."""
    try:
        yield
    except (
        ValueError, TypeError, ArithmeticError, LookupError, AttributeError, struct_error
    ) as cause:  # fmt: skip
        raise BadImage(
            "holds values that no task can have",
            subject=subject,
            cause=f"{type(cause).__name__}: {cause!s:.200}",
        ) from cause

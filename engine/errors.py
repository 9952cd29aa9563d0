# SPDX-License-Identifier: Apache-2.0
"""Errors of the engine: what happened, to whom, why, and what to do about it.

Error:
├─ Refused          we will not: a kind or case in LIMITS; says how to make it work
├─ Vanished         a task, thread or descriptor went while we looked; may be tried again
├─ Denied           a capability, seccomp, LSM or ptrace scope; names which
├─ Unavailable      the kernel lacks a feature; names it and how it was probed
├─ BadImage         truncated, wrong magic, digest differs; names file and offset
├─ KernelError      a syscall failed; name, arguments, errno
├─ Timeout          what was waited for, how long, state at that time
└─ Bug              an invariant broke; asks for a report
"""

import errno as errno_module
import os

SCARCE = {
    errno_module.EMFILE: "raise torpor's limit of open files (ulimit -n)",
    errno_module.ENFILE: "raise /proc/sys/fs/file-max",
    errno_module.ENOMEM: "give torpor more memory (ulimit -v, its control group)",
}
"""What to do about an error that whatever was asked may end in."""


class Error(Exception):
    """Root of all errors: ``what`` in one clause, ``subject``, ``cause``, ``remedy``."""

    exit_code = 1
    cr_errno = 0

    def __init__(self, what: str, *, subject: str = "", cause: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.subject = subject
        self.cause = cause
        self.remedy = remedy

    @property
    def reason(self) -> str:
        """CamelCase name of the class: the `reason` of a Kubernetes condition."""
        return type(self).__name__

    def __str__(self) -> str:
        """One line: subject, what, cause and remedy."""
        text = f"{self.subject}: {self.what}" if self.subject else self.what
        if self.cause:
            text += f": {self.cause}"
        if self.remedy:
            text += f"; remedy: {self.remedy}"
        return text

    def as_dict(self) -> dict[str, str]:
        """The four fields and the reason, for `--json` and for status fields."""
        return {
            "reason": self.reason,
            "what": self.what,
            "subject": self.subject,
            "cause": self.cause,
            "remedy": self.remedy,
        }


class Refused(Error):
    """A kind or a case that torpor does not take; nothing was touched."""

    exit_code = 3
    cr_errno = errno_module.ENOTSUP
    is_passing = False
    """It goes by itself while the workload runs: worth another try."""


class Vanished(Error):
    """A task, thread or descriptor disappeared while it was looked at; try again."""

    exit_code = 4
    cr_errno = errno_module.ESRCH


class Denied(Error):
    """A right is missing; ``cause`` names it and ``remedy`` where to set it."""

    exit_code = 5
    cr_errno = errno_module.EPERM


class Unavailable(Error):
    """The kernel or the machine lacks a feature."""

    exit_code = 6
    cr_errno = errno_module.EOPNOTSUPP


class BadImage(Error):
    """An image directory or archive cannot be trusted; ``subject`` is file and offset."""

    exit_code = 7
    cr_errno = errno_module.EINVAL

    def __init__(
        self,
        what: str,
        *,
        subject: str = "",
        cause: str = "",
        remedy: str = "take the images from an intact copy, or dump again",
    ) -> None:
        super().__init__(what, subject=subject, cause=cause, remedy=remedy)


class KernelError(Error):
    """A system call failed; ``errno`` is kept."""

    exit_code = 8

    def __init__(
        self, what: str, *, errno: int, subject: str = "", cause: str = "", remedy: str = ""
    ) -> None:
        name = errno_module.errorcode.get(errno, str(errno))
        super().__init__(
            what,
            subject=subject,
            cause=cause or f"{name} ({os.strerror(errno)})",
            remedy=remedy or SCARCE.get(errno, ""),
        )
        self.errno = errno
        self.cr_errno = errno


class Timeout(Error):
    """Something did not happen in time."""

    exit_code = 9
    cr_errno = errno_module.ETIMEDOUT


class Bug(Error):
    """An invariant broke; please report it."""

    exit_code = 70
    cr_errno = errno_module.EIO


class Findings(Refused):
    """Several refusals found at once; ``items`` are the single ones."""

    def __init__(self, items: tuple[Refused, ...]) -> None:
        first = items[0]
        super().__init__(
            first.what if len(items) == 1 else f"{first.what} (and {len(items) - 1} more)",
            subject=first.subject,
            cause=first.cause,
            remedy=first.remedy,
        )
        self.items = items

    @property
    def reason(self) -> str:
        """As a single refusal."""
        return "Refused"


def out_of_memory() -> KernelError:
    """What Python says as MemoryError."""
    return KernelError("out of memory", errno=errno_module.ENOMEM, subject="torpor")

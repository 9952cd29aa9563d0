# SPDX-License-Identifier: Apache-2.0
"""--join-ns: the tree comes back in namespaces that are there already.

Facts (criu(8), and criu 4.2.1 tried): the form is KIND:PID or KIND:FILE, with more behind a comma
for user namespaces. What a process enters with setns(2) its children are born in. Mount and user
namespaces would also be those of the restorer, which still has files to open, and are left to
nsenter(1); a time namespace is entered by the root of the tree only.
"""

from collections.abc import Sequence
from pathlib import Path

from torpor.engine.errors import Refused
from torpor.engine.kernel import nslinks

FORM = "write KIND:PID or KIND:FILE, with net, uts, ipc or time as KIND"
TIME = "time"


def places(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, path) of each. Raises Refused."""
    return [_place(text) for text in texts]


def _place(text: str) -> tuple[str, str]:
    kind, colon, where = text.partition(":")
    if not colon or not where:
        raise Refused("not of the form KIND:FILE", subject=f"--join-ns {text}", remedy=FORM)
    if kind not in (*nslinks.TYPES, TIME):
        raise Refused("a namespace of that kind is not joined", subject=f"--join-ns {text}",
                      remedy="enter it before, with nsenter(1)")  # fmt: skip
    return kind, f"/proc/{where}/ns/{kind}" if where.isdecimal() else where


def enter(texts: Sequence[str]) -> None:
    """Enter them, but that of time: what is restored from now on is in them.

    Raises: Refused, Denied, KernelError.
    """
    for kind, path in places(texts):
        if kind != TIME:
            nslinks.enter(kind, path)


def time_namespace(texts: Sequence[str]) -> Path | None:
    """That of time; the last one counts."""
    return next((Path(path) for kind, path in reversed(places(texts)) if kind == TIME), None)

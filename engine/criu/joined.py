# SPDX-License-Identifier: Apache-2.0
"""--join-ns: the tree comes back in namespaces that are there already.

Facts (criu(8), and criu 4.2.1 tried): the form is KIND:PID or KIND:FILE, with more behind a comma
for user namespaces. What a process enters with setns(2) its children are born in; mount, user and
time namespaces would also be those of the restorer, which still has files to open and clocks to
compare, and are left to nsenter(1).
"""

from collections.abc import Sequence

from torpor.engine.errors import Refused
from torpor.engine.kernel import nslinks

FORM = "write KIND:PID or KIND:FILE, with net, uts or ipc as KIND"


def places(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, path) of each. Raises Refused."""
    return [_place(text) for text in texts]


def _place(text: str) -> tuple[str, str]:
    kind, colon, where = text.partition(":")
    if not colon or not where:
        raise Refused("not of the form KIND:FILE", subject=f"--join-ns {text}", remedy=FORM)
    if kind not in nslinks.TYPES:
        raise Refused("a namespace of that kind is not joined", subject=f"--join-ns {text}",
                      remedy="enter it before, with nsenter(1)")  # fmt: skip
    return kind, f"/proc/{where}/ns/{kind}" if where.isdecimal() else where


def enter(texts: Sequence[str]) -> None:
    """Enter them: what is restored from now on is in them.

    Raises: Refused, Denied, KernelError.
    """
    for kind, path in places(texts):
        nslinks.enter(kind, path)

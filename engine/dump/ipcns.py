# SPDX-License-Identifier: Apache-2.0
"""System V objects of a container's ipc namespace that a restore would not have.

Facts: /proc/sysvipc shows the namespace of whoever opens it, so a task inside is asked. Of
SEM_INFO `semusz` is the number of sets that exist, of MSG_INFO `msgpool` the number of
queues; neither takes a right (ipc/sem.c, semctl_info; ipc/msg.c, msgctl_info; v6.18).
A seccomp filter may end a task that makes an unusual call: one is asked only when its filters let
it answer.
"""

import struct

from torpor.engine.dump.capture import Captured
from torpor.engine.errors import Refused
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.chain import Call
from torpor.engine.kernel.remote import Remote
from torpor.engine.kind import refuse
from torpor.engine.memory.sysv import LIMITS

SEM_INFO, MSG_INFO = 19, 12
SEMINFO, MSGINFO = struct.Struct("10i"), struct.Struct("7iH2x")
SEMUSZ, MSGPOOL = 7, 0


def calls(at: int) -> list[Call]:
    """What it is asked, with room for the answers at ``at``."""
    return [("semctl", (0, 0, SEM_INFO, at)), ("msgctl", (0, MSG_INFO, at))]


def check(root: Captured) -> list[Refused]:
    """Refusals for a stopped root that has an ipc namespace of its own, and may be asked."""
    space = AddressSpace.find(root.task.pid, root.vmas)
    found = []
    with Remote.safe(root.task.pid, space) as remote:
        sets_of, queues_of = calls(remote.buffer)
        if remote.calls([sets_of])[0] >= 0:
            sets = SEMINFO.unpack(remote.read(remote.buffer, SEMINFO.size))[SEMUSZ]
            found += [f"{sets} sets of semaphores"] if sets else []
        if remote.calls([queues_of])[0] >= 0:
            queues = MSGINFO.unpack(remote.read(remote.buffer, MSGINFO.size))[MSGPOOL]
            found += [f"{queues} message queues"] if queues else []
    subject = root.capture.subject
    return [refuse(LIMITS[0], subject, ", ".join(found))] if found else []

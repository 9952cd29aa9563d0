# SPDX-License-Identifier: Apache-2.0
"""What is read of a tree before it is stopped, to be found again, or to be proven, under the stop.

Code that can be borrowed is searched for now and compared as bytes before it is used. Areas are
parsed now: a line of smaps that is the same under the stop is not parsed twice. What a thread of
this machine can have at all is asked once.
"""

from collections.abc import Iterable
from contextlib import suppress

from torpor.engine.dump import threads
from torpor.engine.dump.freeze import StoppedTask
from torpor.engine.errors import Error
from torpor.engine.kernel import proc
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.maps import parse_smaps
from torpor.engine.memory import areas

Spaces = dict[int, AddressSpace]
"""Of tasks by pid. One that is not here, or does not hold any more, is found under the stop."""


def look(tasks: Iterable[StoppedTask]) -> Spaces:
    """Read what will be needed. A task that cannot be read yet is refused, if at all, later."""
    threads.asked_settings()
    found: Spaces = {}
    for task in tasks:
        if not task.tids:
            continue
        with suppress(Error):
            vmas = parse_smaps(proc.read_text(task.pid, "smaps"))
            areas.collect(vmas, "")
            found[task.pid] = AddressSpace.find(task.pid, vmas)
    return found

# SPDX-License-Identifier: Apache-2.0
"""A tree whose memory changes in steps: `stepN` makes the next change, `doneN` tells of it.

Private and shared pages, a child that is there for a while, areas that come and go.
"""

import mmap
import os
import sys
import time
from pathlib import Path

place = Path(sys.argv[1])
PAGES = 64
private = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, PAGES * 4096)
expected = [i % 251 + 1 for i in range(PAGES)]
for i in range(PAGES):
    private[i * 4096] = shared[i * 4096] = expected[i]
extra: list[mmap.mmap] = []
children: list[int] = []


def step(number: int) -> None:
    private[number * 4096] = shared[number * 4096] = expected[number] = 200 + number
    if number % 2:
        extra.append(mmap.mmap(-1, 8 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        extra[-1][0] = number
        children.append(os.fork())
        if not children[-1]:
            while not (place / "go").exists():
                time.sleep(0.01)
            os._exit(0 if right(private) and right(shared) else 1)
    else:
        extra.pop().close()
        os.kill(children[-1], 9)
        os.waitpid(children.pop(), 0)


def right(area: mmap.mmap) -> bool:
    return [area[i * 4096] for i in range(PAGES)] == expected


def verdict() -> str:
    if not (right(private) and right(shared)):
        return "its memory is not what it was"
    if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
        return "its child's memory is not what it was"
    return "ok"


(place / "ready").touch()
count = 0
while not (place / "go").exists():
    if (place / f"step{count + 1}").exists():
        count += 1
        step(count)
        (place / f"done{count}").touch()
    time.sleep(0.01)
part = place / "result.part"
part.write_text(verdict())
part.rename(place / "result")

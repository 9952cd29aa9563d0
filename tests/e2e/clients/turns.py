# SPDX-License-Identifier: Apache-2.0
"""Two programs that take turns; run in two containers of a pod, they show whether a cut is one.

Each keeps the number of its turns in its own memory and in a file that both have mapped. `ping`
takes turn n + 1 after `pong` has taken turn n, and `pong` takes turn n after `ping` has. So the
two numbers differ by at most one at any instant; a pod whose containers were captured at different
instants comes back with numbers that do not fit, and the program that sees it ends with status 3.
TERM ends it with status 7, so that the way of an exit code can be followed.
"""

import mmap
import os
import signal
import struct
import sys
import time

PAUSE_S = 0.0002
STATUS_BROKEN, STATUS_ENDED = 3, 7


def main():
    role = sys.argv[1]
    fd = os.open("/shared/turns", os.O_RDWR | os.O_CREAT, 0o666)
    os.ftruncate(fd, 4096)
    shared = memoryview(mmap.mmap(fd, 4096)).cast("Q")  # written and read as a whole
    signal.signal(signal.SIGTERM, lambda *_: os._exit(STATUS_ENDED))
    mine, other = (0, 1) if role == "ping" else (1, 0)
    lead = 0 if role == "ping" else 1
    turn = 0
    print(f"{role} begins", flush=True)
    while True:
        own, theirs = shared[mine], shared[other]
        if own != turn or theirs - turn not in (lead - 1, lead):
            print(f"broken: turn {turn}, mine {own}, the other's {theirs}", flush=True)
            os._exit(STATUS_BROKEN)
        if theirs - turn == lead:
            turn += 1
            shared[mine] = turn
        else:
            time.sleep(PAUSE_S)


def show():
    with open("/shared/turns", "rb") as file:
        data = file.read(16)
    print(*struct.unpack("<QQ", data))


if sys.argv[1] == "show":
    show()
else:
    main()

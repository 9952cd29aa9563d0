# SPDX-License-Identifier: Apache-2.0
"""A deep tree: generations, sessions, process groups, zombies, a subreaper, death signals.

Each task answers one letter on its own pipe, so that it is seen to be alive and to be who it was.
"""

import ctypes
import os
import signal
import sys

from files_base import workload

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_SUBREAPER, PR_GET_SUBREAPER = 1, 2, 36, 37
DEPTH = 6


def option(number):
    value = ctypes.c_int()
    LIBC.prctl(number, ctypes.byref(value), 0, 0, 0)
    return value.value


def identity():
    return [os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), option(PR_GET_PDEATHSIG),
            option(PR_GET_SUBREAPER)]  # fmt: skip


class Child:
    """A task that tells its identity whenever it is asked."""

    def __init__(self, setup=lambda: None, then=lambda: None):
        question, self.ask = os.pipe()
        self.answers, answer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            setup()
            below = then()
            while os.read(question, 1):
                mine = [identity()]
                if below is not None:
                    mine += below.tell()
                os.write(answer, repr(mine).encode())
            os._exit(0)
        os.close(question)
        os.close(answer)
        self.first = self.tell()

    def tell(self):
        os.write(self.ask, b"?")
        return eval(os.read(self.answers, 65536))


def generation(depth):
    def below():
        return generation(depth - 1) if depth else None

    def setup():
        if depth % 3 == 0:
            os.setsid()
        elif depth % 3 == 1:
            os.setpgid(0, 0)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGUSR1 if depth % 2 else 0, 0, 0, 0)
        if depth == 2:
            LIBC.prctl(PR_SET_SUBREAPER, 1, 0, 0, 0)

    return Child(setup, below)


def body(place):
    deep = generation(DEPTH)
    groups = [Child(lambda: os.setpgid(0, 0))]
    groups += [Child(lambda: os.setpgid(0, groups[0].pid)) for _ in range(2)]
    leader = Child(lambda: os.setpgid(0, 0))
    orphaned = Child(lambda: os.setpgid(0, leader.pid))  # its group's leader will be gone
    os.kill(leader.pid, signal.SIGKILL)
    os.waitpid(leader.pid, 0)
    zombies = {}
    for code in (0, 3):
        pid = os.fork()
        if not pid:
            os._exit(code)
        zombies[pid] = code << 8
    pid = os.fork()
    if not pid:
        signal.pause()
    os.kill(pid, signal.SIGTERM)
    zombies[pid] = signal.SIGTERM
    for pid in zombies:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    everyone = [deep, *groups, orphaned]
    before = [[identity()], *(child.first for child in everyone)]
    yield
    now = [[identity()], *(child.tell() for child in everyone)]
    assert now == before, f"was {before}\nis  {now}"
    for pid, status in zombies.items():
        assert os.waitpid(pid, 0) == (pid, status)
    os.kill(groups[0].pid, signal.SIGTERM)
    assert os.waitpid(groups[0].pid, 0)[1] == signal.SIGTERM
    assert orphaned.tell()


if __name__ == "__main__":
    sys.setswitchinterval(1)
    workload(body)

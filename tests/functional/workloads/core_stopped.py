# SPDX-License-Identifier: Apache-2.0
"""A child that is stopped by SIGSTOP stays so, and runs when it is told to."""

import os
import signal
import time

from files_base import workload


def state(pid):
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


def body(place):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        while True:
            os.write(write, b".")
            time.sleep(0.01)
    os.read(read, 1)
    os.kill(child, signal.SIGSTOP)
    assert os.waitpid(child, os.WUNTRACED)[0] == child
    os.set_blocking(read, False)
    try:
        while os.read(read, 100):
            pass
    except BlockingIOError:
        pass
    yield
    assert state(child) == "T", state(child)
    time.sleep(0.1)
    try:
        raise AssertionError(f"it has run: {os.read(read, 100)}")
    except BlockingIOError:
        pass
    os.waitpid(child, os.WNOHANG | os.WUNTRACED)  # after a restore it is told once more
    os.kill(child, signal.SIGCONT)
    assert os.waitpid(child, os.WCONTINUED)[0] == child
    os.set_blocking(read, True)
    assert os.read(read, 1) == b"."
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    workload(body)

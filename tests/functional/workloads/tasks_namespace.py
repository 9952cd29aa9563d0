# SPDX-License-Identifier: Apache-2.0
"""A child in namespaces of its own: of the kind that the second argument names."""

import ctypes
import os
import signal
import sys
import time

from files_base import workload

FLAGS = {"net": 0x40000000, "mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000,
         "pid": 0x20000000, "time": 0x80, "cgroup": 0x02000000}  # fmt: skip


def link(child, name):
    try:
        return os.readlink(f"/proc/{child}/ns/{name}")
    except FileNotFoundError:  # a pid namespace without a task
        return None


def body(place):
    child = os.fork()
    if not child:
        if ctypes.CDLL(None).unshare(FLAGS[sys.argv[2]]):
            os._exit(1)
        while True:
            time.sleep(1000)
    wanted = os.readlink(f"/proc/self/ns/{sys.argv[2]}")
    name = {"pid": "pid_for_children", "time": "time_for_children"}.get(sys.argv[2], sys.argv[2])
    while link(child, name) == wanted:
        time.sleep(0.01)
    yield
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    workload(body)

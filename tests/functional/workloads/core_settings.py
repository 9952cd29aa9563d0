# SPDX-License-Identifier: Apache-2.0
"""Limits, niceness, policy, processors and umask of several tasks, each with its own."""

import os
import resource
import signal

from files_base import workload

SETTINGS = (
    lambda: (os.setpriority(os.PRIO_PROCESS, 0, 5), os.sched_setaffinity(0, {0})),
    lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    lambda: resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 22)),
    lambda: (os.umask(0o007), resource.setrlimit(resource.RLIMIT_NOFILE, (77, 99))),
    lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 36, resource.RLIM_INFINITY)),
)


def say():
    umask = os.umask(0)
    os.umask(umask)
    return repr([
        [resource.getrlimit(n) for n in range(16)], os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)), umask,
    ])  # fmt: skip


def body(place):
    children = []
    for number, setting in enumerate(SETTINGS):
        ask_read, ask = os.pipe()
        tell, tell_write = os.pipe()
        pid = os.fork()
        if not pid:
            setting()
            while os.read(ask_read, 1):
                os.write(tell_write, say().encode())
            os._exit(0)
        children.append((number, pid, ask, tell))

    def all_say():
        said = [say()]
        for _, _, ask, tell in children:
            os.write(ask, b"?")
            said.append(os.read(tell, 65536).decode())
        return said

    before = all_say()
    assert len(set(before)) == len(before)
    yield
    assert all_say() == before
    for _, pid, _, _ in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    workload(body)

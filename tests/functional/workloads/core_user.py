# SPDX-License-Identifier: Apache-2.0
"""Three tasks of three users: ids, groups, capabilities that were dropped; they cannot go back."""

import os
import signal

from files_base import workload


def drop(uid, groups):
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def say():
    with open("/proc/self/status") as file:
        kept = [line for line in file if line.startswith(("Uid", "Gid", "Groups", "Cap"))]
    return "".join(kept)


def body(place):
    children = []
    for uid, groups in ((12345, [7, 8, 9]), (54321, []), (12345, [50000])):
        ask_read, ask = os.pipe()
        tell, tell_write = os.pipe()
        pid = os.fork()
        if not pid:
            drop(uid, groups)
            while os.read(ask_read, 1):
                try:
                    os.setuid(0)
                    os.write(tell_write, b"became root")
                except PermissionError:
                    os.write(tell_write, say().encode())
            os._exit(0)
        children.append((pid, ask, tell))

    def all_say():
        said = [say()]
        for _, ask, tell in children:
            os.write(ask, b"?")
            said.append(os.read(tell, 65536).decode())
        return said

    before = all_say()
    assert "became root" not in before
    yield
    now = all_say()
    assert now == before, f"{now} was {before}"
    for pid, _, _ in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    workload(body)

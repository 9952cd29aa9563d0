# SPDX-License-Identifier: Apache-2.0
"""Files by path, unlinked, locked, appended to; directories; /proc; devices."""

import ctypes
import fcntl
import os
import time
from pathlib import Path

from files_base import workload

LIBC = ctypes.CDLL(None, use_errno=True)


def body(place):
    data = place / "data"
    data.write_bytes(b"0123456789")
    read = os.open(data, os.O_RDONLY)
    os.lseek(read, 3, os.SEEK_SET)
    append = os.open(data, os.O_WRONLY | os.O_APPEND)
    gone = os.open(place / "gone", os.O_RDWR | os.O_CREAT, 0o640)
    os.write(gone, b"ghost" * 1000)
    again = os.open(place / "gone", os.O_RDONLY)
    os.unlink(place / "gone")
    temporary = os.open(place, os.O_TMPFILE | os.O_RDWR)
    os.write(temporary, b"temporary")
    fcntl.flock(read, fcntl.LOCK_SH)
    fcntl.lockf(append, fcntl.LOCK_EX, 5, 2)
    status = os.open("/proc/self/status", os.O_RDONLY)
    uptime = os.open("/proc/uptime", os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDWR)
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    inode = os.fstat(read).st_ino
    child = os.fork()
    if child == 0:
        while not (place / "child").exists():
            time.sleep(0.02)
        os.lseek(read, 5, os.SEEK_SET)  # of the parent as well
        os._exit(0 if os.pread(again, 5, 0) == b"ghost" else 3)
    yield
    assert "POSIX" in Path(f"/proc/self/fdinfo/{append}").read_text()
    (place / "child").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.read(read, 3) == b"567"
    assert os.fstat(read).st_ino == inode
    os.write(append, b"end")
    assert data.read_bytes() == b"0123456789end"
    assert os.fstat(gone).st_nlink == 0
    assert os.fstat(gone).st_mode & 0o777 == 0o640
    assert os.write(null, b"x") == 1
    assert os.fstat(gone).st_ino == os.fstat(again).st_ino
    assert os.pread(again, 9999, 0) == b"ghost" * 1000
    assert os.lseek(gone, 0, os.SEEK_CUR) == 5000
    assert os.pread(temporary, 99, 0) == b"temporary"
    name = f"/proc/self/fd/{temporary}".encode()
    assert LIBC.linkat(-100, name, -100, os.fsencode(place / "kept"), 0x400) == 0
    assert (place / "kept").read_bytes() == b"temporary"
    assert "FLOCK" in Path(f"/proc/self/fdinfo/{read}").read_text()
    assert b"Pid:" in os.read(status, 9999)
    assert os.read(uptime, 99)
    assert "data" in os.listdir(folder)


if __name__ == "__main__":
    workload(body)

# SPDX-License-Identifier: Apache-2.0
"""Open files of /proc, /sys and cgroups: of oneself, of others, of tasks that have ended."""

import os
import signal
import threading
import time

from files_base import await_file, child, chosen, ended, state


def fails(call, *arguments):
    """The error number of a call, 0 when it works."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0


@state
def own(place):
    """Of the task itself: files, directories, links, positions."""
    names = ["status", "maps", "mem", "fd", "fdinfo", "environ", "task", "ns", "stat", "cmdline",
             "", "attr", "mountinfo", "net", "comm"]  # fmt: skip
    fds = {name: os.open(f"/proc/self/{name}", os.O_RDONLY) for name in names}
    read = os.read(fds["status"], 10)
    os.lseek(fds["mem"], 0x10000, os.SEEK_SET)
    os.listdir(fds["fd"])
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    os.lseek(pagemap, 8 * 1000, os.SEEK_SET)
    comm = os.open("/proc/self/comm", os.O_RDWR)
    yield
    whole = read + os.read(fds["status"], 1 << 16)
    assert f"Pid:\t{os.getpid()}\n".encode() in whole
    assert os.lseek(fds["mem"], 0, os.SEEK_CUR) == 0x10000
    assert os.lseek(pagemap, 0, os.SEEK_CUR) == 8000
    assert "0" in os.listdir(fds["fd"])
    assert str(os.getpid()) in os.listdir(fds["task"])
    assert b"python" in os.read(fds["cmdline"], 999)
    assert "status" in os.listdir(fds[""])
    os.write(comm, b"renamed")
    assert os.pread(fds["comm"], 99, 0) == b"renamed\n"


@state
def others(place):
    """Of a child, of the parent, of a thread; held by one, opened by another."""
    pids = []
    stop = threading.Event()
    tids = []
    thread = threading.Thread(target=lambda: (tids.append(threading.get_native_id()), stop.wait()))

    def body():
        parent = os.open(f"/proc/{os.getppid()}/status", os.O_RDONLY)
        mine = os.open("/proc/self/stat", os.O_RDONLY)
        (place / "opened").touch()
        await_file(place / "child")
        assert f"Pid:\t{os.getppid()}\n".encode() in os.read(parent, 1 << 16)
        assert os.read(mine, 1 << 12).startswith(b"%d " % os.getpid())

    own_status = os.open("/proc/self/status", os.O_RDONLY)  # the child has it too
    pids.append(child(body))
    await_file(place / "opened")
    thread.start()
    while not tids:
        time.sleep(0.01)
    of_child = os.open(f"/proc/{pids[0]}/status", os.O_RDONLY)
    folder = os.open(f"/proc/{pids[0]}", os.O_RDONLY)
    of_thread = os.open(f"/proc/self/task/{tids[0]}/stat", os.O_RDONLY)
    own_thread = os.open("/proc/thread-self/comm", os.O_RDONLY)
    yield
    assert f"Pid:\t{pids[0]}\n".encode() in os.read(of_child, 1 << 16)
    assert "fd" in os.listdir(folder)
    assert os.read(of_thread, 1 << 12).startswith(b"%d " % tids[0])
    assert os.read(own_thread, 99)
    assert f"Pid:\t{os.getpid()}\n".encode() in os.read(own_status, 1 << 16)
    (place / "child").touch()
    assert ended(pids[0]) == 0
    stop.set()


@state
def dead(place):
    """Of tasks that have ended."""
    pid = child(lambda: await_file(place / "end"))
    names = ["status", "fd", "", "maps", "task", "mem"]
    fds = {name: os.open(f"/proc/{pid}/{name}", os.O_RDONLY) for name in names}
    path = os.open(f"/proc/{pid}", os.O_PATH)
    again = os.open(f"/proc/{pid}/status", os.O_RDONLY)
    (place / "end").touch()
    assert ended(pid) == 0
    yield
    assert fails(os.read, fds["status"], 9) in (3, 2)
    assert fails(os.read, again, 9) in (3, 2)
    assert fails(os.listdir, fds["fd"]) in (3, 2)
    assert fails(lambda: os.open("status", os.O_RDONLY, dir_fd=path)) in (2, 3)
    assert not os.path.exists(f"/proc/{pid}")


@state
def dead_thread(place):
    """Of a thread that has ended."""
    tids = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: (tids.append(threading.get_native_id()), stop.wait()))
    thread.start()
    while not tids:
        time.sleep(0.01)
    status = os.open(f"/proc/self/task/{tids[0]}/status", os.O_RDONLY)
    stop.set()
    thread.join()
    while os.path.exists(f"/proc/self/task/{tids[0]}"):
        time.sleep(0.01)
    yield
    assert fails(os.read, status, 9) in (3, 2)


@state
def zombie(place):
    """Of a task that has ended and is not waited for."""
    pid = child(lambda: await_file(place / "end"))
    status = os.open(f"/proc/{pid}/status", os.O_RDONLY)
    (place / "end").touch()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    yield
    text = os.read(status, 1 << 12)
    assert f"Pid:\t{pid}\n".encode() in text
    assert b"zombie" in text
    assert ended(pid) == 0


@state
def system(place):
    """Of the whole machine: /proc, /proc/sys, /sys, cgroups."""
    names = ["/proc/uptime", "/proc/meminfo", "/proc/self/mounts", "/proc/sys/kernel/hostname",
             "/proc/sys/fs", "/proc", "/proc/sys", "/sys/kernel", "/sys/kernel/mm", "/sys",
             "/proc/stat", "/proc/cpuinfo", "/proc/filesystems"]  # fmt: skip
    names += [n for n in ("/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage/enabled",
                          "/sys/kernel/debug", "/sys/devices/system/cpu/online")
              if os.path.exists(n)]  # fmt: skip
    fds = [os.open(name, os.O_RDONLY) for name in names]
    os.read(fds[0], 3)
    os.read(fds[10], 100)
    writable = os.open("/proc/sys/kernel/hostname", os.O_RDWR)
    for cgroup in ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"):
        if os.path.exists(cgroup):
            names.append(cgroup)
            fds.append(os.open(cgroup, os.O_RDONLY))
    yield
    assert os.lseek(fds[0], 0, os.SEEK_CUR) == 3
    assert os.lseek(fds[10], 0, os.SEEK_CUR) == 100
    for fd, name in zip(fds, names, strict=True):
        if name != "/proc/self/mounts":
            assert os.readlink(f"/proc/self/fd/{fd}") == os.path.realpath(name)
        assert os.listdir(fd) is not None if os.path.isdir(name) else os.pread(fd, 10, 0)
    assert os.pread(writable, 99, 0) == os.uname().nodename.encode() + b"\n"


@state
def namespaces(place):
    """Descriptors of the task's own namespaces, by open and O_PATH of the link."""
    names = ["mnt", "net", "pid", "ipc", "uts", "user", "cgroup"]
    fds = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in names]
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
    path = os.open("/proc/self/ns/net", os.O_PATH | os.O_NOFOLLOW)
    pid = child(signal.pause)
    of_child = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY)
    yield
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == links
    assert os.readlink(f"/proc/self/fd/{of_child}") == links[4]
    assert os.readlink("", dir_fd=path) == links[1]
    os.kill(pid, signal.SIGKILL)
    ended(pid)


@state
def outside(place):
    """Of a task outside of the tree."""
    fd = os.open("/proc/1/status", os.O_RDONLY)
    yield
    assert os.read(fd, 9)


if __name__ == "__main__":
    chosen()

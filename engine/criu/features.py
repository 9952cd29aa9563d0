# SPDX-License-Identifier: Apache-2.0
"""What `criu check` tells: CRIU's names of features, each with what it takes here.

A feature is supported when this kernel has what it needs and torpor makes use of it; the answer is
about torpor, so a name that the kernel would serve and torpor does not is told as not supported,
with the reason. Categories are CRIU's: always needed, needed by some trees (--extra),
experimental; the rest is only asked for by name.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from torpor.engine.errors import Denied, Error, Unavailable
from torpor.engine.kernel import features, proc
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.kernel.rights import call, effective
from torpor.engine.lazy import uffd

MOUNTS = "mount namespaces are not restored yet"
NETWORK = "network namespaces are not restored yet"
LOCK = "the network is locked by nftables only"
SO_BUF_LOCK, IPV6_FREEBIND = 72, 78
SIOCUNIXFILE = 0x89E0
NETLINK_NETFILTER = 12


class Category(Enum):
    """When a feature is checked without being asked for."""

    NEEDED = "always"
    EXTRA = "--extra"
    EXPERIMENTAL = "--experimental"
    NAMED = "by name only"


@dataclass(frozen=True, slots=True, kw_only=True)
class CriuFeature:
    """A feature by CRIU's name: what torpor uses it for, or why it does not; how it is tried."""

    name: str
    use: str = ""
    lacking: str = ""
    probe: Callable[[], None] | None = None
    torpor: str = ""
    """Name of the feature that `torpor check` tries for it."""
    category: Category = Category.EXTRA


@contextmanager
def _open(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _field_of_fdinfo(fd: int, name: str) -> None:
    if f"{name}:" not in proc.read_text("self", f"fdinfo/{fd}"):
        raise Unavailable(f"no {name} in fdinfo")


def _mnt_id() -> None:
    with _open("/") as fd:
        _field_of_fdinfo(fd, "mnt_id")


def _locks() -> None:
    import fcntl

    fd = os.memfd_create("torpor-check", os.MFD_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        _field_of_fdinfo(fd, "lock")
    finally:
        os.close(fd)


def _timerfd() -> None:
    fd = call("timerfd_create", 1, os.O_CLOEXEC)
    try:
        _field_of_fdinfo(fd, "it_value")
    finally:
        os.close(fd)


def _loginuid() -> None:
    proc.read_text("self", "loginuid")


def _ns_pid() -> None:
    if "NSpid:" not in proc.read_text("self", "status"):
        raise Unavailable("no NSpid in status")


def _option(level: int, option: int, family: int = socket.AF_INET) -> None:
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
        one.getsockopt(level, option)


def _epoll_targets() -> None:
    import select

    from torpor.engine import native
    from torpor.engine.kernel import fdcalls

    with select.epoll() as poll, socket.socket() as target:
        poll.register(target, select.EPOLLIN)
        slot = fdcalls.EpollSlot(poll.fileno(), target.fileno(), 0)
        address = fdcalls.address_of(slot)
        native.kcmp(os.getpid(), os.getpid(), native.KCMP_EPOLL_TFD, target.fileno(), address)


def _unix_file() -> None:
    with socket.socket(socket.AF_UNIX) as one:
        import fcntl

        try:
            fcntl.ioctl(one, SIOCUNIXFILE)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def _openat2() -> None:
    how = struct.pack("<QQQ", os.O_RDONLY | os.O_CLOEXEC, 0, 0)
    os.close(call("syscall", syscall_number("openat2"), -100, b"/", how, len(how)))


def _vdso() -> None:
    if "[vdso]" not in proc.read_text("self", "maps"):
        raise Unavailable("this task has no vDSO")


def _memfd_hugetlb() -> None:
    os.close(os.memfd_create("torpor-check", os.MFD_CLOEXEC | os.MFD_HUGETLB))


@contextmanager
def _userfaultfd() -> Iterator[int]:
    fd = call("syscall", syscall_number("userfaultfd"), uffd.FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def _faults() -> None:
    with _userfaultfd():
        return


def _fault_events() -> None:
    with _userfaultfd() as fd:
        uffd.begin(fd)


def _tun() -> None:
    with _open("/dev/net/tun", os.O_RDWR):
        return


def _own_time() -> None:
    proc.read_text("self", "timens_offsets")
    lacking = {"SYS_ADMIN", "SYS_TIME"} - effective()
    if lacking:
        raise Denied("needs CAP_" + " and CAP_".join(sorted(lacking)))


def _nftables() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER):
        return


NEEDED, NAMED = Category.NEEDED, Category.NAMED
CRIU_FEATURES: Sequence[CriuFeature] = (
    CriuFeature(name="mnt_id", use="mounts of open files", probe=_mnt_id, category=NEEDED),
    CriuFeature(name="mem_dirty_track", use="pages of an earlier dump; they are compared",
                torpor="PAGEMAP_SCAN"),
    CriuFeature(name="aio_remap", use="asynchronous I/O contexts", torpor="PAGEMAP_SCAN"),
    CriuFeature(name="timerfd", use="settings of timerfds", probe=_timerfd, category=NEEDED),
    CriuFeature(name="tun", use="tun and tap interfaces", probe=_tun),
    CriuFeature(name="tun_ns", use="the same, in the network namespace of the tree", probe=_tun),
    CriuFeature(name="userns", lacking="user namespaces are not restored yet"),
    CriuFeature(name="fdinfo_lock", use="who holds a file lock", probe=_locks),
    CriuFeature(name="seccomp_suspend", use="restore under a strict filter",
                torpor="seccomp suspended"),
    CriuFeature(name="seccomp_filters", use="a task's own filters", torpor="seccomp filters"),
    CriuFeature(name="loginuid", use="the audit identity", probe=_loginuid),
    CriuFeature(name="cgroupns", lacking="cgroup namespaces are not restored yet"),
    CriuFeature(name="autofs", lacking=MOUNTS, category=Category.EXPERIMENTAL),
    CriuFeature(name="tcp_half_closed", use="connections that one side has closed",
                torpor="sock_diag", category=NAMED),
    CriuFeature(name="compat_cr", lacking="32-bit programs are refused",
                category=Category.EXPERIMENTAL),
    CriuFeature(name="uffd", use="memory that is filled while its tasks run", probe=_faults),
    CriuFeature(name="uffd-noncoop", use="the same, when they fork or move memory",
                probe=_fault_events),
    CriuFeature(name="can_map_vdso", use="find and move the vDSO", probe=_vdso),
    CriuFeature(name="sk_ns", use="sockets of the tree's network namespace",
                torpor="pidfd_getfd", category=NAMED),
    CriuFeature(name="sk_unix_file", use="files of bound Unix sockets", probe=_unix_file,
                category=NAMED),
    CriuFeature(name="net_diag_raw", use="raw sockets", torpor="sock_diag", category=NAMED),
    CriuFeature(name="nsid", lacking=NETWORK, category=NAMED),
    CriuFeature(name="link_nsid", lacking=NETWORK, category=NAMED),
    CriuFeature(name="kcmp_epoll", use="what an epoll descriptor watches", probe=_epoll_targets),
    CriuFeature(name="timens", use="clocks of a restored tree that go on", probe=_own_time),
    CriuFeature(name="external_net_ns", lacking=NETWORK),
    CriuFeature(name="clone3_set_tid", use="old pids", torpor="clone3 with set_tid"),
    CriuFeature(name="newifindex", lacking=NETWORK),
    CriuFeature(name="nftables", use="rules that hold packets", probe=_nftables, category=NAMED),
    CriuFeature(name="has_ipt_legacy", lacking=LOCK, category=NAMED),
    CriuFeature(name="pidfd_store",
                lacking="tasks of an earlier dump are told apart by their start"),
    CriuFeature(name="ns_pid", use="pids inside of namespaces", probe=_ns_pid),
    CriuFeature(name="apparmor_stacking", lacking="profiles of security modules are not set",
                category=NAMED),
    CriuFeature(name="network_lock_nftables", use="keep connections to the outside",
                probe=_nftables),
    CriuFeature(name="sockopt_buf_lock", use="locked sizes of socket buffers",
                probe=lambda: _option(socket.SOL_SOCKET, SO_BUF_LOCK)),
    CriuFeature(name="memfd_hugetlb", use="memfds of reserved huge pages",
                probe=_memfd_hugetlb),
    CriuFeature(name="move_mount_set_group", lacking=MOUNTS),
    CriuFeature(name="openat2", use="open paths safely", probe=_openat2),
    CriuFeature(name="get_rseq_conf", use="restartable sequences", torpor="rseq configuration"),
    CriuFeature(name="ipv6_freebind", use="an option of sockets",
                probe=lambda: _option(socket.IPPROTO_IPV6, IPV6_FREEBIND, socket.AF_INET6)),
    CriuFeature(name="pagemap_scan", use="find the pages to save", torpor="PAGEMAP_SCAN"),
    CriuFeature(name="timer_cr_ids", use="old ids of POSIX timers", torpor="ids of POSIX timers"),
    CriuFeature(name="overlayfs_maps", use="mapped files of an overlay", torpor="kcmp"),
    CriuFeature(name="breakpoints", use="stop restored tasks; torpor needs none",
                torpor="ptrace(SEIZE)"),
    CriuFeature(name="pagemap_scan_guard_pages", use="guard regions", torpor="PAGEMAP_SCAN"),
)  # fmt: skip
BY_NAME = {feature.name: feature for feature in CRIU_FEATURES}


def missing(feature: CriuFeature) -> str:
    """Why a feature is not supported; empty when it is."""
    if feature.lacking:
        return feature.lacking
    try:
        if feature.probe is not None:
            feature.probe()
    except Error as error:
        return error.cause or error.what
    except OSError as error:
        return error.strerror or str(error)
    if feature.torpor:
        (wanted,) = (f for f in features.FEATURES if f.name == feature.torpor)
        (found,) = features.probe_all([wanted])
        return found.cause
    return ""

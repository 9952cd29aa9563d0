# SPDX-License-Identifier: Apache-2.0
"""Options of a request as words of the command line, so that the one table judges them.

Facts (criu 4.2.1, tried): options of configuration files come first, then those of the request,
then those of its `config_file`, which need not be there. The log is `criu.log` unless another name
without a directory is given, or `log_to_stderr`. Descriptors of directories are the caller's;
those of `inherit_fd` and `ps` are our own, as `swrk` has inherited them.

A service has inherited none, so it takes them from the caller. What speaks of mount, network and
other namespaces is taken for a tree that has none of its own, where it means nothing; the engine
refuses other trees.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torpor.engine.criu import config
from torpor.engine.criu.parse import CommandLine, parse
from torpor.engine.criu.rpc import BadRequest, Peer
from torpor.engine.images.proto import rpc_pb2 as pb

DEFAULT_LOG = "criu.log"
FLAGS = (
    "leave_running", "ext_unix_sk", "tcp_established", "evasive_devices", "shell_job", "file_locks",
    "track_mem", "auto_dedup", "link_remap", "force_irmap", "tcp_skip_in_flight", "weak_sysctls",
    "lazy_pages", "tcp_close", "tls", "tls_no_cn_verify", "mntns_compat_mode",
    "skip_file_rwx_check", "unprivileged", "leave_stopped", "display_stats",
)  # fmt: skip
"""Fields that are options without a value."""
VALUES = {
    "parent_img": "prev-images-dir", "ghost_limit": "ghost-limit", "cgroup_props": "cgroup-props",
    "cgroup_props_file": "cgroup-props-file", "freeze_cgroup": "freeze-cgroup",
    "timeout": "timeout", "lsm_profile": "lsm-profile", "tls_cacert": "tls-cacert",
    "tls_cacrl": "tls-cacrl", "tls_cert": "tls-cert", "tls_key": "tls-key",
    "cgroup_yard": "cgroup-yard", "lsm_mount_context": "lsm-mount-context",
}  # fmt: skip
"""Field → option of the same value."""
LISTS = {
    "irmap_scan_paths": "irmap-scan-path", "cgroup_dump_controller": "cgroup-dump-controller",
}  # fmt: skip
OF_NAMESPACES = (
    "root", "ext_mnt", "auto_ext_mnt", "ext_sharing", "ext_masters", "skip_mnt", "enable_fs",
    "empty_ns", "veths", "orphan_pts_master",
)  # fmt: skip
"""Fields that count only for a tree in namespaces of its own."""
EXTERNAL_OF_NAMESPACES = ("mnt[", "net[", "pid[", "veth[", "macvlan[", "dev[", "netdev[")
REFUSED = {
    "exec_cmd": "the one who asks can execute it",
    "pidfd_store_sk": "tasks of an earlier dump are told apart by their start",
}
"""Fields without an option of the command line, and why they are not taken."""
FPU, CPU, INS = 1, 2, 4
ALL_CAPABILITIES = 0xFFFFFFFF


def line_of(command: str, options: "pb.criu_opts", peer: Peer) -> CommandLine:
    """The command line that says the same as a request.

    Raises: BadRequest, Refused.
    """
    before = config.words([])
    named = options.config_file
    after = config.words(["--config", named]) if named else []
    found = list(words(command, options, peer))
    return parse([*found, *after, *command.split()], before=before)


def words(command: str, options: "pb.criu_opts", peer: Peer) -> Iterator[str]:
    """Words of the command line for the options of a request."""
    for field, why in REFUSED.items():
        if _given(options, field):
            raise BadRequest("the option is not taken", subject=field, cause=why)
    yield from _directories(options, peer)
    yield from _log(command, options)
    yield from _plain(options)
    for field, write in WRITTEN.items():
        if _given(options, field):
            yield from write(getattr(options, field))
    if options.manage_cgroups or options.HasField("manage_cgroups_mode"):
        yield f"--manage-cgroups={_cgroup_mode(options)}"
    yield from _inherited(options, peer)
    if options.HasField("status_fd"):
        yield f"--status-fd={_opened(peer.descriptor(options.status_fd))}"
    yield from _of_command(command, options)


def _plain(options: "pb.criu_opts") -> Iterator[str]:
    """Options whose values are written as they are."""
    if options.HasField("pid"):
        yield f"--tree={options.pid}"
    yield from (f"--{name.replace('_', '-')}" for name in FLAGS if getattr(options, name))
    for field, option in VALUES.items():
        if options.HasField(field):
            yield f"--{option}={getattr(options, field)}"
    for field, option in LISTS.items():
        yield from (f"--{option}={value}" for value in getattr(options, field))


def _of_command(command: str, options: "pb.criu_opts") -> Iterator[str]:
    if command == "cpuinfo check" and not options.HasField("cpu_cap"):
        yield f"--cpu-cap={_capabilities(FPU | INS)}"
    if command == "restore":
        yield "--restore-detached"
        if options.rst_sibling:
            yield "--restore-sibling"


def _given(options: "pb.criu_opts", field: str) -> bool:
    value = getattr(options, field)
    repeated = not isinstance(value, (bool, int, str, bytes)) and hasattr(value, "append")
    return bool(value) if repeated else options.HasField(field)


def _directories(options: "pb.criu_opts", peer: Peer) -> Iterator[str]:
    if options.images_dir_fd >= 0:
        yield f"--images-dir={_directory(peer.descriptor(options.images_dir_fd))}"
    elif options.images_dir:
        yield f"--images-dir={options.images_dir}"
    else:
        raise BadRequest("no directory for images", subject="images_dir_fd",
                         remedy="give images_dir_fd or images_dir")  # fmt: skip
    if options.HasField("work_dir_fd") and options.work_dir_fd >= 0:
        yield f"--work-dir={_directory(peer.descriptor(options.work_dir_fd))}"


def _directory(path: str) -> str:
    """A directory of the caller: its name, or where we have it open, if the name is another's here.

    What the caller has open goes with the caller, and it may see other mounts than we do.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadRequest("the directory cannot be opened", subject=path,
                         cause=str(error.strerror)) from error  # fmt: skip
    ours = Path(f"/proc/self/fd/{fd}")
    name = ours.readlink()
    if not _same(name, ours):
        return str(ours)
    os.close(fd)
    return str(name)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _opened(path: str) -> int:
    """A descriptor of the caller, as one of ours."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BadRequest("the descriptor cannot be opened", subject=path,
                         cause=str(error.strerror)) from error  # fmt: skip


def _log(command: str, options: "pb.criu_opts") -> Iterator[str]:
    yield f"--verbosity={options.log_level}"
    if "/" in options.log_file:
        raise BadRequest("a log has no directory in its name", subject=options.log_file,
                         remedy="give the directory as work_dir_fd")  # fmt: skip
    if options.log_file:
        yield f"--log-file={options.log_file}"
    elif not options.log_to_stderr and command != "check":
        yield f"--log-file={DEFAULT_LOG}"


def _inherited(options: "pb.criu_opts", peer: Peer) -> Iterator[str]:
    for one in options.inherit_fd:
        yield f"--inherit-fd=fd[{peer.inherited(one.fd)}]:{one.key}"
    if options.HasField("ps"):
        yield from _page_server(options.ps, peer)


def _page_server(server: "pb.criu_page_server_info", peer: Peer) -> Iterator[str]:
    if server.HasField("fd"):
        yield f"--ps-socket={peer.inherited(server.fd)}"
    if server.address:
        yield f"--address={server.address}"
    if server.HasField("port"):
        yield f"--port={server.port}"
    yield "--page-server"


def _capabilities(value: int) -> str:
    if value == ALL_CAPABILITIES:
        return "all"
    names = [name for bit, name in ((FPU, "fpu"), (CPU, "cpu"), (INS, "ins")) if value & bit]
    return ",".join(names) or "none"


def _externals(names: Sequence[str]) -> Iterator[str]:
    yield from (f"--external={n}" for n in names if not n.startswith(EXTERNAL_OF_NAMESPACES))


def _cgroup_mode(options: "pb.criu_opts") -> str:
    mode = options.manage_cgroups_mode
    if not options.HasField("manage_cgroups_mode") or mode == pb.DEFAULT:
        return "soft"
    return pb.criu_cg_mode.Name(mode).removeprefix("CG_").lower()


LOCKS = {pb.IPTABLES: "iptables", pb.NFTABLES: "nftables", pb.SKIP: "skip"}
READERS = {pb.SPLICE: "splice", pb.VM_READ: "read"}
WRITTEN: dict[str, Callable[[Any], Iterator[str]]] = {
    "cpu_cap": lambda value: iter([f"--cpu-cap={_capabilities(value)}"]),
    "cg_root": lambda roots: (
        f"--cgroup-root={root.ctrl}:{root.path}" if root.ctrl else f"--cgroup-root={root.path}"
        for root in roots
    ),
    "unix_sk_ino": lambda sockets: (f"--external=unix[{one.inode}]" for one in sockets),
    "external": _externals,
    "join_ns": lambda spaces: (f"--join-ns={one.ns}:{one.ns_file}" for one in spaces),
    "network_lock": lambda way: iter([f"--network-lock={LOCKS[way]}"]),
    "pre_dump_mode": lambda way: iter([f"--pre-dump-mode={READERS[way]}"]),
}
"""Field → words for its value."""

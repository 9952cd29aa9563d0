# SPDX-License-Identifier: Apache-2.0
"""From CRIU's options to the engine's."""

import math
from collections.abc import Mapping
from pathlib import Path

from torpor.engine.criu import joined
from torpor.engine.criu.parse import CommandLine
from torpor.engine.errors import Refused
from torpor.engine.inherit import parse_inherit
from torpor.engine.options import (
    After,
    CgroupMode,
    DumpOptions,
    NetworkLock,
    RestoreOptions,
    TcpPolicy,
)
from torpor.engine.text import parse_size

DEFAULT_TIMEOUT_S = 10.0
"""For stopping the tasks; what comes after may take as long as it needs (criu(8), --timeout)."""
CRIU_GHOST_LIMIT = 1 << 20


def dump_options(line: CommandLine) -> DumpOptions:
    """What `criu dump` asks of the engine."""
    if not line.flag("tree"):
        raise Refused("pid not specified", subject=f"criu {line.command}", remedy="give -t PID")
    ghosts = line.last("ghost_limit")
    return DumpOptions(
        pid=line.number("tree"),
        images_dir=Path(line.last("images_dir", ".")),
        after=_after(line),
        tcp=_tcp(line),
        skip_in_flight=line.flag("skip_in_flight") or line.flag("tcp_skip_in_flight"),
        network_lock=_network_lock(line),
        shell_job=line.flag("shell_job"),
        external=frozenset(line.all("external")),
        freezer_cgroups=tuple(Path(path) for path in line.all("freeze_cgroup")),
        ghost_limit_bytes=parse_size(ghosts) if ghosts else CRIU_GHOST_LIMIT,
        timeout_s=math.inf,
        stop_timeout_s=line.number("timeout") or DEFAULT_TIMEOUT_S,
        link_remap=line.flag("link_remap"),
        replace=True,
        half_pipes=True,
        cgroup_controllers=tuple(line.all("cgroup_dump_controller")),
        cgroup_settings=_cgroup_settings(line),
        parent=line.last("prev_images_dir"),
        dedup=line.flag("auto_dedup"),
    )


def restore_options(line: CommandLine) -> RestoreOptions:
    """What `criu restore` asks of the engine."""
    if line.flag("restore_sibling") and not line.flag("restore_detached"):
        raise Refused("only makes sense with --restore-detached", subject="--restore-sibling",
                      remedy="give -d as well")  # fmt: skip
    return RestoreOptions(
        images_dir=Path(line.last("images_dir", ".")),
        inherit=_inherited(line),
        tcp_close=line.flag("tcp_close"),
        timeout_s=math.inf,
        cgroups=CgroupMode(line.last("manage_cgroups") or "soft"),
        cgroup_roots=dict(_cgroup_root(text) for text in line.all("cgroup_root")),
        shell_job=line.flag("shell_job"),
        sibling=line.flag("restore_sibling"),
        leave_stopped=line.flag("leave_stopped"),
        check_files=not line.flag("skip_file_rwx_check"),
        time_namespace=joined.time_namespace(line.all("join_ns")),
    )


def _after(line: CommandLine) -> After:
    """As with criu, --leave-stopped counts more than --leave-running."""
    if line.flag("leave_stopped"):
        return After.PAUSE
    return After.CONTINUE if line.flag("leave_running") else After.STOP


def _cgroup_settings(line: CommandLine) -> Mapping[str, tuple[str, ...]]:
    if not (line.flag("cgroup_props") or line.flag("cgroup_props_file")):
        return {}
    from torpor.engine.criu import cgroupprops

    return cgroupprops.settings(line)


def _cgroup_root(text: str) -> tuple[str, str]:
    """`[CONTROLLER:]/GROUP`."""
    controller, colon, path = text.rpartition(":")
    if not path.startswith("/"):
        raise Refused("not of the form [CONTROLLER:]/GROUP", subject=f"--cgroup-root {text}")
    return (controller if colon else "", path)


def _inherited(line: CommandLine) -> dict[str, int]:
    inherit: dict[str, int] = {}
    for text in line.all("inherit_fd"):
        try:
            name, fd = parse_inherit(text)
        except ValueError as error:
            raise Refused("not of the form fd[N]:NAME", subject=f"--inherit-fd {text}") from error
        if not Path(f"/proc/self/fd/{fd}").exists():
            raise Refused("the descriptor is not open", subject=f"--inherit-fd {text}",
                          remedy="open it in the caller of criu")  # fmt: skip
        inherit[name] = fd
    return inherit


def _tcp(line: CommandLine) -> TcpPolicy:
    if line.flag("tcp_close"):
        return TcpPolicy.CLOSE_ALL
    return TcpPolicy.KEEP if line.flag("tcp_established") else TcpPolicy.REFUSE


def _network_lock(line: CommandLine) -> NetworkLock:
    """`iptables` means rules that iptables-nft would make, and nftables has them all."""
    return NetworkLock.SKIP if line.last("network_lock") == "skip" else NetworkLock.NFTABLES

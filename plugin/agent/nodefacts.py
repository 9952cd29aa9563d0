# SPDX-License-Identifier: Apache-2.0
"""What a restore has to match of the node that a checkpoint was taken on."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from torpor.engine.errors import BadImage, Unavailable
from torpor.engine.version import VERSION
from torpor.plugin.store.manifest import NodeFacts

# Instructions that a program may have found by CPUID when it started, and goes on using.
_INSTRUCTION_SETS = (
    "adx", "aes", "amx", "avx", "bmi", "cx16", "f16c", "fma", "fsgsbase", "gfni", "lzcnt",
    "movbe", "pclmul", "pku", "pni", "popcnt", "rdpid", "rdrand", "rdseed", "rdtscp", "sha_ni",
    "sse", "ssse", "vaes", "vpclmul", "xsave",
    "asimd", "atomics", "crc32", "fphp", "sve", "sm3", "sm4", "sha",
)  # fmt: skip


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Instruction set extensions of the first processor, sorted."""
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(
                sorted(flag for flag in set(value.split()) if flag.startswith(_INSTRUCTION_SETS))
            )
    return ()


def node_facts(node_name: str, flags: Iterable[str]) -> NodeFacts:
    """Facts of this node."""
    system = os.uname()
    return NodeFacts(
        name=node_name,
        kernel=system.release,
        arch=system.machine,
        cpu_flags_sha256=hashlib.sha256(" ".join(flags).encode()).hexdigest(),
        engine_version=VERSION,
    )


def check_node(old: NodeFacts, old_flags: Iterable[str], new_flags: Iterable[str]) -> None:
    """Raise unless what ran on the old node can run on this one.

    Raises:
        BadImage: another architecture.
        Unavailable: an instruction set is missing.
    """
    machine = os.uname().machine
    if old.arch != machine:
        raise BadImage(
            "the checkpoint is of another architecture",
            subject=f"checkpoint of node {old.name}",
            cause=f"it is {old.arch}, this node is {machine}",
            remedy=f"restore on a node with kubernetes.io/arch of {old.arch}",
        )
    missing = sorted(set(old_flags) - set(new_flags))
    if missing:
        raise Unavailable(
            "the processor lacks instructions that the workload may use",
            subject=f"checkpoint of node {old.name}",
            cause=f"missing are {', '.join(missing[:12])}",
            remedy="restore on a node with the same kind of processor",
        )

# SPDX-License-Identifier: Apache-2.0
"""Takes away the network lock of criu's default method, which is rules of iptables.

Facts (what Debian's criu 4.2 was seen to run, once for each direction of each connection):
`iptables -w -t filter -I INPUT --protocol tcp -m mark ! --mark 0xC114 --source PEER --sport PORT
--destination OURS --dport PORT -j DROP`, and OUTPUT the other way round; ip6tables for IPv6. Its
restore deletes them with -D. Where they are kept (nf_tables or not) is known to that program only,
so it is asked. A machine that lacks it has no such rules.
"""

import ipaddress
from collections.abc import Iterable

from torpor.engine.kernel.nftables import MARK, Connection

TIME_LIMIT_S = 30
V4_BYTES = 4


def unlock(connections: Iterable[Connection]) -> tuple[str, ...]:
    """Delete the rules of connections; what went wrong, but not that there is no rule."""
    import shutil  # slow to import, seldom needed

    told = []
    for source, port, peer, peer_port in connections:
        program = shutil.which("iptables" if len(source) == V4_BYTES else "ip6tables")
        if program is None:
            continue
        ours, theirs = (_text(source), port), (_text(peer), peer_port)
        for chain, ends in (("INPUT", (theirs, ours)), ("OUTPUT", (ours, theirs))):
            told += _delete(program, chain, ends)
    return tuple(told)


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


def _delete(program: str, chain: str, ends: tuple[tuple[str, int], tuple[str, int]]) -> list[str]:
    import subprocess  # slow to import, seldom needed

    (source, port), (target, target_port) = ends
    rule = (
        "--protocol", "tcp", "-m", "mark", "!", "--mark", f"{MARK:#x}", "--source", source,
        "--sport", str(port), "--destination", target, "--dport", str(target_port), "-j", "DROP",
    )  # fmt: skip
    is_there = (program, "-w", "-t", "filter", "-C", chain, *rule)
    asked = subprocess.run(is_there, capture_output=True, check=False, timeout=TIME_LIMIT_S)
    if asked.returncode:
        return []
    done = subprocess.run(
        (program, "-w", "-t", "filter", "-D", chain, *rule),
        capture_output=True, check=False, timeout=TIME_LIMIT_S, text=True,
    )  # fmt: skip
    if not done.returncode:
        return []
    return [f"a rule of iptables holds back {source}:{port}: {done.stderr.strip()}"]

# SPDX-License-Identifier: Apache-2.0
"""Credentials of a thread: ids, groups, capability sets, securebits, no_new_privs.

Facts:
- All ids, groups and capability sets are in /proc/PID/task/TID/status; securebits are asked
  by an injected prctl. Seen from another user namespace the ids are mapped to it.
- Order of setting: bounding set and groups while CAP_SETPCAP/CAP_SETGID are there, then ids
  with SECBIT_NO_SETUID_FIXUP so that capabilities stay, the ambient set (securebits may forbid
  it: SECBIT_NO_CAP_AMBIENT_RAISE), securebits, and capset last.
- An unprivileged change of uid loses the permitted set, so ambient capabilities with it.
- A change of uid clears dumpable and the parent-death signal (kernel/cred.c, commit_creds):
  both are set afterwards.
- What is equal already is left alone, so a task without any capability comes back too.
"""

import struct
from dataclasses import dataclass, replace
from typing import Any

from torpor.engine.kernel.proc import parse_status
from torpor.engine.program.ops import Data, Expect, Op

PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 24, 28, 38
PR_SET_KEEPCAPS, CAP_SETPCAP, CAP_SYS_ADMIN = 8, 8, 21
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
SECBIT_KEEP_CAPS, SECBIT_NO_SETUID_FIXUP = 1 << 4, 1 << 2
CAP_VERSION_3 = 0x20080522
CAP_LAST = 40
NO_ID = 0xFFFFFFFF
REMEDY = "give the container the capability that the old one had, or run as the old user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Creds:
    """Real, effective, saved and file system ids; capability sets as bit masks."""

    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    securebits: int
    no_new_privs: bool


def collect(status: str, securebits: int) -> Creds:
    """From the status text of a thread."""
    s = parse_status(status)
    return Creds(
        uids=_four(s.uid),
        gids=_four(s.gid),
        groups=tuple(s.groups),
        inheritable=s.cap_inh,
        permitted=s.cap_prm,
        effective=s.cap_eff,
        bounding=s.cap_bnd,
        ambient=s.cap_amb,
        securebits=securebits,
        no_new_privs=bool(s.no_new_privs),
    )


def _four(ids: Any) -> tuple[int, int, int, int]:  # noqa: ANN401
    a, b, c, d = ids
    return (a, b, c, d)


def encode(state: Creds, entry: Any) -> None:  # noqa: ANN401
    """Fill a creds_entry; sets are two 32-bit words, low one first."""
    entry.uid, entry.euid, entry.suid, entry.fsuid = state.uids
    entry.gid, entry.egid, entry.sgid, entry.fsgid = state.gids
    for name, value in (
        ("cap_inh", state.inheritable),
        ("cap_prm", state.permitted),
        ("cap_eff", state.effective),
        ("cap_bnd", state.bounding),
        ("cap_amb", state.ambient),
    ):
        getattr(entry, name).extend((value & 0xFFFFFFFF, value >> 32))
    entry.secbits = state.securebits
    entry.groups.extend(state.groups)
    if state.no_new_privs:
        entry.no_new_privs = 1


def decode(entry: Any) -> Creds:  # noqa: ANN401
    """Read a creds_entry."""

    def both(words: Any) -> int:  # noqa: ANN401
        return sum(word << (32 * i) for i, word in enumerate(words))

    return Creds(
        uids=(entry.uid, entry.euid, entry.suid, entry.fsuid),
        gids=(entry.gid, entry.egid, entry.sgid, entry.fsgid),
        groups=tuple(entry.groups),
        inheritable=both(entry.cap_inh),
        permitted=both(entry.cap_prm),
        effective=both(entry.cap_eff),
        bounding=both(entry.cap_bnd),
        ambient=both(entry.cap_amb),
        securebits=entry.secbits,
        no_new_privs=bool(entry.no_new_privs),
    )


def plan(wanted: Creds, current: Creds) -> list[Op]:
    """What turns a thread with ``current`` credentials into one with ``wanted`` ones."""
    ops = _plan_bounding(wanted, current)
    if wanted.groups != current.groups:
        raw = struct.pack(f"<{len(wanted.groups)}I", *wanted.groups)
        ops.append(_op("setgroups", (len(wanted.groups), Data(raw, 4)), "supplementary groups"))
    ids_differ = wanted.uids != current.uids or wanted.gids != current.gids
    securebits = current.securebits
    if ids_differ:
        if _may_set_securebits(current):
            securebits |= SECBIT_NO_SETUID_FIXUP
            if securebits != current.securebits:
                ops.append(_securebits(securebits, "keep capabilities while ids change"))
        ops += _plan_ids(wanted)
    ops += _plan_ambient(wanted, current)
    ops += _plan_securebits(wanted.securebits, securebits)
    if ids_differ or _sets(wanted) != _sets(current):
        ops.append(_capset(_sets(wanted), "capability sets"))
    if wanted.no_new_privs and not current.no_new_privs:
        ops.append(_op("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs"))
    return ops


def may_filter(creds: Creds) -> bool:
    """Whether a thread with these may install a seccomp filter (seccomp(2))."""
    return creds.no_new_privs or bool(creds.effective >> CAP_SYS_ADMIN & 1)


def _sets(creds: Creds) -> tuple[int, int, int]:
    return creds.effective, creds.permitted, creds.inheritable


def _capset(sets: tuple[int, int, int], note: str) -> Op:
    raw = struct.pack("<6I", *(v & 0xFFFFFFFF for v in sets), *(v >> 32 for v in sets))
    return _op("capset", (Data(struct.pack("<Ii", CAP_VERSION_3, 0)), Data(raw)), note)


def _may_set_securebits(current: Creds) -> bool:
    return bool(current.effective >> CAP_SETPCAP & 1)


def _securebits(value: int, note: str) -> Op:
    return _op("prctl", (PR_SET_SECUREBITS, value, 0, 0, 0), note)


def _plan_securebits(wanted: int, current: int) -> list[Op]:
    """Keeping capabilities needs no right, the other bits need CAP_SETPCAP."""
    if wanted == current:
        return []
    if wanted ^ current == SECBIT_KEEP_CAPS:
        keep = int(bool(wanted & SECBIT_KEEP_CAPS))
        return [_op("prctl", (PR_SET_KEEPCAPS, keep, 0, 0, 0), "keep capabilities")]
    return [_securebits(wanted, "securebits")]


def _plan_bounding(wanted: Creds, current: Creds) -> list[Op]:
    return [
        _op("prctl", (PR_CAPBSET_DROP, cap, 0, 0, 0), f"bounding set without capability {cap}")
        for cap in range(CAP_LAST + 1)
        if current.bounding >> cap & 1 and not wanted.bounding >> cap & 1
    ]


def _plan_ids(wanted: Creds) -> list[Op]:
    ops = [_op("setresgid", wanted.gids[:3], "group ids")]
    if wanted.gids[3] != wanted.gids[1]:
        ops += _plan_fs_id("setfsgid", wanted.gids[3], "file system group")
    ops.append(_op("setresuid", wanted.uids[:3], "user ids"))
    if wanted.uids[3] != wanted.uids[1]:
        ops += _plan_fs_id("setfsuid", wanted.uids[3], "file system user")
    return ops


def _plan_fs_id(call: str, number: int, note: str) -> list[Op]:
    """It tells no failure, only the id of before: asked again with an id that none can have."""
    return [
        replace(_op(call, (number,), note), expect=Expect.ANY),
        replace(_op(call, (NO_ID,), f"{note}, asked"), expect=Expect.EQUAL, want=number),
    ]


def _plan_ambient(wanted: Creds, current: Creds) -> list[Op]:
    """While the inheritable set is there and securebits do not yet forbid it."""
    if wanted.ambient == current.ambient:
        return []
    ops = [_op("prctl", (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient")]
    if wanted.ambient & ~current.inheritable:
        sets = (current.effective, current.permitted, wanted.inheritable)
        ops.append(_capset(sets, "inheritable set"))
    ops += [
        _op("prctl", (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0), "ambient set")
        for cap in range(CAP_LAST + 1)
        if wanted.ambient >> cap & 1
    ]
    return ops


def _op(call: str, args: tuple[Any, ...], note: str) -> Op:
    return Op(call=call, args=args, subject="credentials", note=note, remedy=REMEDY)


def forked(creds: Creds) -> Creds:
    """Credentials that a child made by fork starts with."""
    return replace(creds)

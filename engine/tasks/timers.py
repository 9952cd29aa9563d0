# SPDX-License-Identifier: Apache-2.0
"""Interval timers and POSIX timers of a task.

Facts:
- An ITIMER_REAL whose signal is pending reads as value 0 with an interval; setitimer with
  value 0 would disarm it: it is armed with its interval (seen on 6.18).
- /proc/PID/timers lists id, signal, sigev_value, notify kind and clock of POSIX timers
  (proc_pid_timers(5)); remaining time and overrun are asked by injected calls.
- The signal of a periodic timer that waits in a queue gets its overrun when it is taken
  (kernel/time/posix-timers.c, posixtimer_deliver_signal; v6.18), which nobody can read before.
  It is not queued again: the timer is made to expire at once, and counts on.
- Ids are given in order; PR_TIMER_CREATE_RESTORE_IDS (Linux 6.16) lets timer_create take the
  id it is given. Older kernels: ids are burnt until the wanted one comes.
"""

import struct
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torpor.engine.capture import PosixTimerCapture
from torpor.engine.kernel.proctexts import TimerInfo
from torpor.engine.program.ops import Data, Expect, Op

ITIMERVAL = struct.Struct("<4q")
ITIMERSPEC = struct.Struct("<4q")
SIGINFO_TIMER = struct.Struct("<iiixxxxi")
"""Of a siginfo of a timer: signal, errno, code, id."""
SI_TIMER = -2
NAMES = ("real", "virt", "prof")
PR_TIMER_CREATE_RESTORE_IDS = 77
SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
NOTIFY = {"signal": SIGEV_SIGNAL, "none": SIGEV_NONE, "thread": SIGEV_THREAD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Itimer:
    """One interval timer: seconds and microseconds."""

    interval_s: int
    interval_us: int
    value_s: int
    value_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PosixTimer:
    """A timer of timer_create(2)."""

    timer_id: int
    clock: int
    signal: int
    notify: int
    value: int
    overrun: int
    interval_s: int
    interval_ns: int
    value_s: int
    value_ns: int
    thread: int | None = None


def parse_itimers(raw: Sequence[bytes]) -> tuple[Itimer, ...]:
    """Struct itimerval of the three clocks."""
    return tuple(
        Itimer(interval_s=a, interval_us=b, value_s=c, value_us=d)
        for a, b, c, d in (ITIMERVAL.unpack(content) for content in raw)
    )


def parse_posix(
    infos: Sequence[TimerInfo], settings: Sequence[PosixTimerCapture], inside: Mapping[int, int]
) -> tuple[PosixTimer, ...]:
    """/proc/PID/timers together with what the task was asked; ``inside`` maps tids."""
    by_id = {s.timer_id: s for s in settings}
    timers = []
    for info in infos:
        setting = by_id[info.timer_id]
        spec = ITIMERSPEC.unpack(setting.setting)
        notify = NOTIFY[info.notify] | (SIGEV_THREAD_ID if info.notify_tid else 0)
        timers.append(
            PosixTimer(
                timer_id=info.timer_id,
                clock=info.clock_id,
                signal=info.signal,
                notify=notify,
                value=info.value,
                overrun=setting.overrun,
                interval_s=spec[0],
                interval_ns=spec[1],
                value_s=spec[2],
                value_ns=spec[3],
                thread=inside.get(info.notify_tid) if info.notify_tid else None,
            )
        )
    return tuple(timers)


def encode(itimers: Sequence[Itimer], posix: Sequence[PosixTimer], timers: Any) -> None:  # noqa: ANN401
    """Fill a task_timers_entry."""
    for name, timer in zip(NAMES, itimers, strict=True):
        entry = getattr(timers, name)
        entry.isec, entry.iusec = timer.interval_s, timer.interval_us
        entry.vsec, entry.vusec = timer.value_s, timer.value_us
    for one in posix:
        entry = timers.posix.add(
            it_id=one.timer_id,
            clock_id=one.clock & 0xFFFFFFFF,
            si_signo=one.signal,
            it_sigev_notify=one.notify,
            sival_ptr=one.value,
            overrun=one.overrun,
            isec=one.interval_s,
            insec=one.interval_ns,
            vsec=one.value_s,
            vnsec=one.value_ns,
        )
        if one.thread is not None:
            entry.notify_thread_id = one.thread


def decode(timers: Any) -> tuple[tuple[Itimer, ...], tuple[PosixTimer, ...]]:  # noqa: ANN401
    """Read a task_timers_entry."""
    plain = tuple(
        Itimer(interval_s=e.isec, interval_us=e.iusec, value_s=e.vsec, value_us=e.vusec)
        for e in (getattr(timers, name) for name in NAMES)
    )
    posix = tuple(
        PosixTimer(
            timer_id=e.it_id,
            clock=e.clock_id - (1 << 32) if e.clock_id >> 31 else e.clock_id,
            signal=e.si_signo,
            notify=e.it_sigev_notify,
            value=e.sival_ptr,
            overrun=e.overrun,
            interval_s=e.isec,
            interval_ns=e.insec,
            value_s=e.vsec,
            value_ns=e.vnsec,
            thread=e.notify_thread_id if e.HasField("notify_thread_id") else None,
        )
        for e in timers.posix
    )
    return plain, posix


def of_periodic(info: bytes, posix: Sequence[PosixTimer]) -> int | None:
    """Id of the periodic timer that a pending signal comes from."""
    if len(info) < SIGINFO_TIMER.size:
        return None
    _, _, code, timer_id = SIGINFO_TIMER.unpack_from(info)
    ticking = {t.timer_id for t in posix if t.interval_s or t.interval_ns}
    return timer_id if code == SI_TIMER and timer_id in ticking else None


def plan(
    itimers: Sequence[Itimer], posix: Sequence[PosixTimer], due: Container[int | None] = ()
) -> list[Op]:
    """Arm everything again with the time that was left; those of ids in ``due`` expire at once."""
    ops = [op for which, timer in enumerate(itimers) for op in _plan_itimer(which, timer)]
    if posix:
        ops.append(
            Op(
                call="prctl",
                args=(PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0),
                note="timers get the ids that are asked for",
                remedy="restoring POSIX timers needs Linux 6.16 or later",
            )
        )
        for timer in posix:
            ops += _plan_posix(timer, timer.timer_id in due)
        ops.append(Op(call="prctl", args=(PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0)))
    return ops


def _plan_itimer(which: int, timer: Itimer) -> list[Op]:
    if not any((timer.interval_s, timer.interval_us, timer.value_s, timer.value_us)):
        return []
    value = (timer.value_s, timer.value_us)
    if not any(value):
        value = (timer.interval_s, timer.interval_us)
    raw = ITIMERVAL.pack(timer.interval_s, timer.interval_us, *value)
    return [Op(call="setitimer", args=(which, Data(raw), 0), subject=f"{NAMES[which]} timer")]


def _plan_posix(timer: PosixTimer, due: bool) -> list[Op]:
    subject = f"timer {timer.timer_id}"
    # struct sigevent: value, signo, notify, then the thread's id in the union; 64 bytes
    event = struct.pack("<QiiI", timer.value, timer.signal, timer.notify, timer.thread or 0)
    identity = Data(struct.pack("<i", timer.timer_id), 8)
    ops = [
        Op(
            call="timer_create",
            args=(timer.clock, Data(event.ljust(64, b"\0")), identity),
            subject=subject,
        )
    ]
    value = (timer.value_s, timer.value_ns)
    if timer.interval_s or timer.interval_ns or any(value):
        if due or not any(value):
            value = (0, 1)
        raw = ITIMERSPEC.pack(timer.interval_s, timer.interval_ns, *value)
        ops.append(
            Op(
                call="timer_settime",
                args=(timer.timer_id, 0, Data(raw), 0),
                subject=subject,
                note="time that was left",
                expect=Expect.OK,
            )
        )
    return ops

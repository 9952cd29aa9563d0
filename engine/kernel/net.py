# SPDX-License-Identifier: Apache-2.0
"""The net below a borrowed task: what is asked of it before, and the frame it falls back to.

See `kernel.remote` for how it is spread, and why in that order.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.errors import Error, Refused
from torpor.engine.kernel import proc
from torpor.engine.kernel.addressspace import MARK_SIZE, AddressSpace, Scratch
from torpor.engine.kernel.arch import x86_64 as arch

ALL_SIGNALS = (1 << 64) - 1
SLACK = 1024
"""Between the buffer and the frame: what the gadget pops on its way, and the return chain."""
RSEQ_CS = struct.Struct("<IIQQQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A stopped thread as it stands, before anything is written."""

    tid: int
    original: arch.Regs
    """Registers to go on with."""
    restart: arch.Regs
    """The same for a frame or an image: an interrupted call is issued again."""
    mask: int
    xstate: bytes
    status: bytes
    """Its text of /proc."""
    asked: native.ThreadFacts
    """Everything else that was asked together with it."""

    @classmethod
    def of(cls, tids: Sequence[int]) -> "list[Facts]":
        """Ask. Raises Refused for a thread that cannot be borrowed."""
        asked = native.ask_facts(tids)
        statuses = proc.read_many([(tid, "status") for tid in tids])
        return [_facts(one, status) for one, status in zip(asked, statuses, strict=True)]

    def room(self, buffer_size: int) -> int:
        """Bytes of scratch that a net for it takes."""
        frame = arch.SIGFRAME_HEAD.size + arch.FPSTATE_ALIGN + len(self.xstate) + 4
        size = MARK_SIZE + buffer_size + SLACK + frame + arch.FPSTATE_ALIGN
        return -(-size // arch.FPSTATE_ALIGN) * arch.FPSTATE_ALIGN


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """What is written where: mark, buffer, slack, chain and frame, from below."""

    region: Scratch
    buffer: int
    chain_at: int
    content: bytes
    """Chain and frame."""
    armed: arch.Regs
    """Step 2: rt_sigreturn with the frame."""
    base: arch.Regs
    """For calls: the gadget's `ret` finds the chain."""

    @classmethod
    def of(cls, facts: Facts, space: AddressSpace, region: Scratch, buffer_size: int) -> "Net":
        """Plan it in a region of at least `Facts.room` bytes."""
        buffer = region.start + MARK_SIZE
        frame_at = -(-(buffer + buffer_size + SLACK) // arch.FPSTATE_ALIGN) * arch.FPSTATE_ALIGN
        frame = arch.sigframe(
            facts.restart,
            facts.mask,
            None,
            facts.xstate,
            frame_at,
            return_address=space.after_ret,
        )
        chain_at = frame_at - len(space.chain)
        armed = facts.original.copy()
        armed.rip, armed.rax, armed.orig_rax = space.syscall, arch.NR["rt_sigreturn"], ALL_SIGNALS
        armed.rsp = frame_at + arch.SIGFRAME_RSP_OFFSET
        base = armed.copy()
        if space.gadget.base == "rsp":
            base.rsp = chain_at - space.gadget.distance
        else:
            base.rbp = chain_at - space.gadget.distance
            base.rsp = chain_at - SLACK // 2
        return cls(
            region=region,
            buffer=buffer,
            chain_at=chain_at,
            content=space.chain + frame,
            armed=armed,
            base=base,
        )


def _facts(asked: native.ThreadFacts, status: bytes | Error) -> Facts:
    if isinstance(status, Error):
        raise status
    _refuse(asked)
    original = settle_rseq(asked)
    pending = bool(proc.deliverable_signals(status))
    return Facts(
        tid=asked.tid,
        original=original,
        restart=arch.restart_registers(original, signal_pending=pending, code=asked.code),
        mask=asked.mask,
        xstate=asked.xstate,
        status=status,
        asked=asked,
    )


def settle_rseq(asked: native.ThreadFacts) -> arch.Regs:
    """Registers with a restartable sequence aborted, if the task stopped inside of one.

    The kernel would do it when the task goes on (it was preempted); once the registers have
    led elsewhere in between it cannot know any more. Source: kernel/rseq.c (v6.8).
    """
    regs = asked.regs
    if not asked.rseq_cs:
        return regs
    raw = native.read_memory(asked.tid, asked.rseq_cs, RSEQ_CS.size)
    _, _, start, length, abort = RSEQ_CS.unpack(raw)
    if not 0 <= regs.rip - start < length:
        return regs
    aborted = regs.copy()
    aborted.rip = abort
    return aborted


def _refuse(asked: native.ThreadFacts) -> None:
    subject = f"task {asked.tid}"
    if asked.dispatch:
        raise Refused(
            "uses syscall user dispatch: its own code would see our calls",
            subject=subject,
            remedy="checkpoint it while dispatch is off",
        )
    if asked.regs.cs != arch.USER_CS_64:
        raise Refused("runs 32-bit code", subject=subject, remedy="checkpoint 64-bit programs only")

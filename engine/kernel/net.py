# SPDX-License-Identifier: Apache-2.0
"""The net below a borrowed task: what is asked of it before, and the frame it falls back to.

See `kernel.remote` for how it is spread, and why in that order.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.errors import Refused
from torpor.engine.kernel import proc
from torpor.engine.kernel.addressspace import MARK_SIZE, Scratch, Way
from torpor.engine.kernel.arch import x86_64 as arch

ALL_SIGNALS = (1 << 64) - 1
Call = tuple[str, Sequence[int]]
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

    @classmethod
    def of(cls, tid: int) -> "Facts":
        """Ask. Raises Refused for a thread that cannot be borrowed."""
        (asked,) = native.ask_facts([tid])
        status = proc.read_bytes(tid, "status")
        refuse(tid, asked.dispatch, asked.regs.cs)
        original = asked.regs.copy()
        original.rip = settled_rip(tid, original.rip, asked.rseq_cs)
        return cls(
            tid=tid,
            original=original,
            restart=arch.restart_registers(
                original,
                signal_pending=bool(proc.deliverable_signals(status)),
                code=asked.code,
            ),
            mask=asked.mask,
            xstate=asked.xstate,
        )

    def room(self, buffer_size: int, *, parting: bool = False) -> int:
        """Bytes of scratch that a net for it takes, with a parting call or without."""
        return room_for(buffer_size, len(self.xstate), parting=parting)


def room_for(buffer_size: int, xstate_size: int, *, parting: bool = False) -> int:
    """Bytes of scratch of a net; what it begins with and its frame are aligned."""
    frame = arch.SIGFRAME_HEAD.size + arch.FPSTATE_ALIGN + xstate_size + 4
    size = MARK_SIZE + buffer_size + SLACK + frame + arch.FPSTATE_ALIGN
    if parting:
        size += SLACK + arch.SIGFRAME_HEAD.size + arch.FPSTATE_ALIGN
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
    def of(
        cls,
        facts: Facts,
        way: Way,
        region: Scratch,
        buffer_size: int,
        parting: Call | None = None,
    ) -> "Net":
        """Plan it in a region of at least `Facts.room` bytes.

        With a ``parting`` call the task makes it before it goes home, if we die: a frame that
        leads to the call comes first, and the call's `ret` leads to the frame with its context.
        """
        buffer = region.start + MARK_SIZE
        frame_at = _aligned(buffer + buffer_size + SLACK)
        head, home = b"", frame_at
        if parting is not None:
            home = _aligned(frame_at + arch.SIGFRAME_HEAD.size + SLACK)
            leaving = _to_chain(_armed(facts, way, home), way, home)
            leaving.rax, leaving.rdi = arch.syscall_number(parting[0]), parting[1][0]
            head = arch.sigframe(
                leaving, ALL_SIGNALS, None, b"", frame_at, return_address=way.after_ret
            )
            head += bytes(home - len(way.chain) - frame_at - len(head)) + way.chain
        content = way.chain + head
        content += arch.sigframe(
            facts.restart,
            facts.mask,
            None,
            facts.xstate,
            home,
            return_address=way.after_ret,
        )
        armed = _armed(facts, way, frame_at)
        return cls(
            region=region,
            buffer=buffer,
            chain_at=frame_at - len(way.chain),
            content=content,
            armed=armed,
            base=_to_chain(armed, way, frame_at),
        )


def _aligned(address: int) -> int:
    return -(-address // arch.FPSTATE_ALIGN) * arch.FPSTATE_ALIGN


def _armed(facts: Facts, way: Way, frame_at: int) -> arch.Regs:
    """Registers that return by a frame."""
    armed = facts.original.copy()
    armed.rip, armed.rax, armed.orig_rax = way.syscall, arch.NR["rt_sigreturn"], ALL_SIGNALS
    armed.rsp = frame_at + arch.SIGFRAME_RSP_OFFSET
    return armed


def _to_chain(regs: arch.Regs, way: Way, frame_at: int) -> arch.Regs:
    """The same for a call whose `ret` leads to the chain below a frame."""
    base = regs.copy()
    chain_at = frame_at - len(way.chain)
    if way.gadget.base == "rsp":
        base.rsp = chain_at - way.gadget.distance
    else:
        base.rbp = chain_at - way.gadget.distance
        base.rsp = chain_at - SLACK // 2
    return base


def settled_rip(tid: int, rip: int, rseq_cs: int) -> int:
    """Where a thread goes on: a restartable sequence is aborted if it stopped inside of one.

    The kernel would do it when the task goes on (it was preempted); once the registers have
    led elsewhere in between it cannot know any more. Source: kernel/rseq.c (v6.8).
    """
    if not rseq_cs:
        return rip
    raw = native.read_memory(tid, rseq_cs, RSEQ_CS.size)
    _, _, start, length, abort = RSEQ_CS.unpack(raw)
    return int(abort) if 0 <= rip - start < length else rip


def refuse(tid: int, dispatch: int, cs: int) -> None:
    """Raise Refused for a thread that cannot be borrowed."""
    subject = f"task {tid}"
    if dispatch:
        raise Refused(
            "uses syscall user dispatch: its own code would see our calls",
            subject=subject,
            remedy="checkpoint it while dispatch is off",
        )
    if cs != arch.USER_CS_64:
        raise Refused("runs 32-bit code", subject=subject, remedy="checkpoint 64-bit programs only")

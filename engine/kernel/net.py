# SPDX-License-Identifier: Apache-2.0
"""The net below a borrowed task: what is asked of it before, and the frame it falls back to.

See `kernel.remote` for how it is spread, and why in that order.
"""

import struct
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.errors import KernelError, Refused
from torpor.engine.kernel import ptrace
from torpor.engine.kernel.addressspace import MARK_SIZE, AddressSpace, Scratch
from torpor.engine.kernel.arch import x86_64 as arch

ALL_SIGNALS = (1 << 64) - 1
SLACK = 1024
"""Between the buffer and the frame: what the gadget pops on its way, and the return chain."""
WORD = struct.Struct("<Q")
RSEQ_CS = struct.Struct("<IIQQQ")
RSEQ_CS_OFFSET = 8


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
    rseq: tuple[int, int, int, int]

    @classmethod
    def of(cls, tid: int) -> "Facts":
        """Ask. Raises Refused for a thread that cannot be borrowed."""
        _refuse_dispatch(tid)
        found = native.get_regs(tid)
        if found.cs != arch.USER_CS_64:
            raise Refused(
                "runs 32-bit code", subject=f"task {tid}", remedy="checkpoint 64-bit programs only"
            )
        rseq = _rseq_config(tid)
        original = settle_rseq(tid, found, rseq)
        return cls(
            tid=tid,
            original=original,
            restart=ptrace.restart_registers(tid, original),
            mask=native.get_sigmask(tid),
            xstate=native.get_xstate(tid),
            rseq=rseq,
        )

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


def settle_rseq(tid: int, regs: arch.Regs, rseq: tuple[int, int, int, int]) -> arch.Regs:
    """Registers with a restartable sequence aborted, if the task stopped inside of one.

    The kernel would do it when the task goes on (it was preempted); once the registers have
    led elsewhere in between it cannot know any more. Source: kernel/rseq.c (v6.8).
    """
    area, size = rseq[:2]
    if not area or not size:
        return regs
    (descriptor,) = WORD.unpack(native.read_memory(tid, area + RSEQ_CS_OFFSET, WORD.size))
    if not descriptor:
        return regs
    _, _, start, length, abort = RSEQ_CS.unpack(native.read_memory(tid, descriptor, RSEQ_CS.size))
    if not 0 <= regs.rip - start < length:
        return regs
    aborted = regs.copy()
    aborted.rip = abort
    return aborted


def _rseq_config(tid: int) -> tuple[int, int, int, int]:
    try:
        return native.rseq_config(tid)
    except KernelError:  # before Linux 5.13: not readable
        return 0, 0, 0, 0


def _refuse_dispatch(tid: int) -> None:
    try:
        mode = native.user_dispatch(tid)[0]
    except KernelError:  # before Linux 6.4: not readable
        return
    if mode:
        raise Refused(
            "uses syscall user dispatch: its own code would see our calls",
            subject=f"task {tid}",
            remedy="checkpoint it while dispatch is off",
        )

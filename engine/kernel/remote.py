# SPDX-License-Identifier: Apache-2.0
"""System calls run by a stopped task, so that our death at any moment does it no harm.

Nothing is mapped into the task and its text is never written. What is used (ADR 0003):

- a *gadget* in its vDSO: `syscall; (harmless); ret`;
- S, the `mov $15,%eax; syscall` that its libc returns from signal handlers with;
- *scratch*: the lowest pages of its [stack], far below every stack pointer.

The scratch holds a signal frame with the task's whole context, and the gadget's `ret` leads
to S with rsp at that frame. So a task that is let go by our death finishes the system call
it is in, returns to S, and rt_sigreturn puts it back where it was. Step by step, what the
task does if we die right after:

1. scratch written: nothing; no stack pointer is near.
2. SETREGS rip = `syscall`, rax = 15, rsp = frame: rt_sigreturn, its own context and mask.
3. all signals blocked: as 2, the mask comes from the frame.
4. a call runs (SETREGS, PTRACE_SYSCALL to its entry and its exit): the call ends, `ret`, S.
5. the task is moved to its event stop, where the kernel restarts calls: as 4.
6. its own mask set: as 2. 7. its own registers set: it goes on by itself.
8. the scratch gets its former content back: nothing.

Two windows of about a microsecond remain, from 2 to 3 and from 6 to 7: a signal that comes
just then and finds us dead runs its handler on the scratch (a stack like any other), which
is wrong only if the task was stopped inside a handler on its alternate stack.

A call that the stop interrupted goes on by the kernel's own restart (orig_rax comes back in
7). After our death it is issued anew: a relative sleep starts again from its full length.
Some calls (epoll_wait, signal(7)) give EINTR at any stop; native/seam/ptrace.c sets them to
be issued again as soon as the task stands, and only a death before that lets EINTR be seen.

Many threads at once, and many calls in one go: `kernel.borrow` and `kernel.chain` (ADR 20).

PTRACE_SINGLESTEP is not used: it outlives the tracer and kills the task by SIGTRAP.
"""

from collections.abc import Sequence
from typing import Self

from torpor.engine import native
from torpor.engine.errors import Bug, KernelError, Vanished
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.net import Call, Facts, Net

__all__ = ["AddressSpace", "Remote"]

ALL_SIGNALS = (1 << 64) - 1
BUFFER_SIZE = 4096


class Remote:
    """One stopped task that runs system calls for us, as a `with` block.

    Use `Remote.safe` for a task of somebody else's, `Remote.plain` for one that is being
    restored and dies with us. At the end the task stands at its event stop.
    """

    def __init__(self, tid: int, *, buffer: int, buffer_size: int) -> None:
        self.tid = tid
        self.buffer = buffer
        """Address of room for the arguments of calls."""
        self.buffer_size = buffer_size
        self.original = native.get_regs(tid)
        self._mask = native.get_sigmask(tid)
        self._base = self.original.copy()
        self._saved = b""
        self._space: AddressSpace | None = None
        self._net: Net | None = None
        self._abandoned = False

    @classmethod
    def safe(
        cls,
        tid: int,
        space: AddressSpace,
        *,
        buffer_size: int = BUFFER_SIZE,
        parting: Call | None = None,
    ) -> Self:
        """With the net. All threads of the process must be stopped; one `Remote` at a time.

        ``parting`` is a call of one argument that the task makes by itself if we die: it takes
        back what a call of ours has made.

        Raises Refused for a task that cannot be borrowed; then nothing was touched.
        """
        facts = Facts.of(tid)
        scratch = space.scratch(facts.room(buffer_size, parting=parting is not None))
        net = Net.of(facts, space.way, scratch, buffer_size, parting)
        remote = cls(tid, buffer=net.buffer, buffer_size=buffer_size)
        remote.original = facts.original
        remote._net, remote._space = net, space
        return remote

    @classmethod
    def plain(
        cls, tid: int, syscall_address: int, buffer_address: int, buffer_size: int
    ) -> "Remote":
        """Without a net, for a task with PTRACE_O_EXITKILL: any `syscall` instruction does.

        At the end its registers and mask come back, unless `abandon` was called.
        """
        remote = cls(tid, buffer=buffer_address, buffer_size=buffer_size)
        remote._base.rip = syscall_address
        return remote

    @property
    def borrowed(self) -> tuple[int, int]:
        """(address, bytes) of the task's memory that is in use until the end (safe only)."""
        region = self._net.region if self._net is not None else None
        return (region.start, region.size) if region else (self.buffer, 0)

    def __enter__(self) -> Self:
        if self._net is not None and self._space is not None:
            self._spread_net(self._net, self._space)
        else:
            native.set_sigmask(self.tid, ALL_SIGNALS)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._abandoned:
            return
        try:
            self._put_back()
        except Vanished:
            if error is None:
                raise

    def call(self, name: str, *args: int) -> int:
        """Run one call. Raises KernelError when it fails."""
        result = self.try_call(name, *args)
        if result < 0:
            shown = ", ".join(hex(a) if a > 4096 else str(a) for a in args)
            raise KernelError(
                f"{name}({shown}) failed inside the task", errno=-result, subject=f"task {self.tid}"
            )
        return result

    def try_call(self, name: str, *args: int) -> int:
        """Run one call; the result may be -errno."""
        return self.calls([(name, args)])[0]

    def calls(self, calls: Sequence[Call], timeout_s: float = 10.0) -> list[int]:
        """Run several calls, each whatever the others gave; results may be -errno."""
        words = [
            (arch.syscall_number(name), *args, *(0,) * (6 - len(args))) for name, args in calls
        ]
        return native.remote_calls(self.tid, self._base, words, timeout_s)

    def read(self, address: int, size: int) -> bytes:
        """Memory of the task."""
        return native.read_memory(self.tid, address, size)

    def write(self, address: int, data: bytes) -> None:
        """Memory of the task; with a net only inside the buffer."""
        if self._space is not None and not self._in_buffer(address, len(data)):
            raise Bug("a borrowed task's own memory is not written", subject=f"task {self.tid}")
        native.write_memory(self.tid, address, data)

    def rebase(self, syscall_address: int) -> None:
        """After an execve (plain only): take the new program's registers as the original ones."""
        self.original = native.get_regs(self.tid)
        self._base = self.original.copy()
        self._base.rip = syscall_address

    def abandon(self) -> None:
        """Leave registers and mask as they are at the end (plain only)."""
        if self._space is not None:
            raise Bug("a borrowed task must get its context back", subject=f"task {self.tid}")
        self._abandoned = True

    def _in_buffer(self, address: int, size: int) -> bool:
        return self.buffer <= address and address + size <= self.buffer + self.buffer_size

    def _spread_net(self, net: Net, space: AddressSpace) -> None:
        """Steps 1 to 3."""
        space.verify()
        self._saved = native.read_memory(self.tid, net.region.start, net.region.size)
        native.write_memory(self.tid, net.region.start, net.region.mark)
        native.write_memory(self.tid, net.chain_at, net.content)
        native.arm(self.tid, net.armed)
        self._base = net.base

    def _put_back(self) -> None:
        """Steps 5 to 8."""
        native.settle(self.tid, stopped=True)
        native.disarm(self.tid, self._mask, self.original)
        if self._saved and self._net is not None:
            native.write_memory(self.tid, self._net.region.start, self._saved)

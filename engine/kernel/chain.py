# SPDX-License-Identifier: Apache-2.0
"""Many system calls of a borrowed thread in one go, instead of two stops for each.

The words of a chain lie on the thread's scratch, right below the frame that brings it home, and
lead through pieces of its C library: `pop` of the arguments, `syscall; ret`, and a store of the
result. The last call is tgkill(2) of the thread itself with a signal that means nothing to the
program; its delivery is a stop for the tracer, which drops it. Where the tracer has died the
kernel drops it, and the thread goes on through the frame as from any other call (`kernel.remote`).

Facts:
- A traced thread stops for a signal that is ignored by default; one that is not traced never
  sees it (kernel/signal.c, sig_ignored and get_signal; v6.18).
- No rt_sigreturn may be part of a chain: it makes the kernel forget how to go on with a sleep
  that was interrupted (arch/x86/kernel/signal_64.c, restore_sigcontext sets restart_block).
- `syscall` changes rcx and r11 only. No piece sets r10 and r8, the fourth and fifth argument: the
  tracer does, so there is one chain for all calls that have these two in common. They follow each
  other on the scratch, and a thread whose tracer is gone runs through those that are left with the
  wrong ones: only calls that ask and change nothing may be made so.
- A filter would judge the calls of a chain when the tracer is gone: filtered threads have none.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torpor.engine import native
from torpor.engine.errors import KernelError
from torpor.engine.kernel import maps, proc
from torpor.engine.kernel.arch import x86_64 as arch

POP_RDI, POP_RSI, POP_RDX, POP_RAX = b"\x5f\xc3", b"\x5e\xc3", b"\x5a\xc3", b"\x58\xc3"
SYSCALL_RET, STORE = b"\x0f\x05\xc3", b"\x48\x89\x02\xc3"
"""The last one is `mov %rax,(%rdx); ret`."""
PIECES = (POP_RDI, POP_RSI, POP_RDX, POP_RAX, SYSCALL_RET, STORE)
LARGEST_LIBRARY = 8 << 20
WORDS_OF_CALL, WORDS_OF_END = 12, 9
WORD = 8
SIGURG, SIGWINCH = 23, 28

Call = tuple[str, Sequence[int]]
_known: dict[tuple[int, int, int, int, int], tuple[int, ...] | None] = {}


@dataclass(frozen=True, slots=True)
class Pieces:
    """Addresses of PIECES in a process."""

    pop_rdi: int
    pop_rsi: int
    pop_rdx: int
    pop_rax: int
    syscall: int
    store: int

    @property
    def proof(self) -> tuple[tuple[int, bytes], ...]:
        """Code that must still be there."""
        places = (self.pop_rdi, self.pop_rsi, self.pop_rdx, self.pop_rax, self.syscall, self.store)
        return tuple(zip(places, PIECES, strict=True))

    def words(self, call: Call, result_at: int) -> tuple[int, ...]:
        """One call, whose result is kept."""
        rdi, rsi, rdx = (word & arch.WORD_MASK for word in (*call[1], 0, 0, 0)[:3])
        return (
            self.pop_rdi, rdi, self.pop_rsi, rsi, self.pop_rdx, rdx,
            self.pop_rax, arch.syscall_number(call[0]), self.syscall,
            self.pop_rdx, result_at, self.store,
        )  # fmt: skip

    def end(self, process: int, thread: int, signal: int) -> tuple[int, ...]:
        """The call that ends a chain."""
        return (
            self.pop_rdi, process, self.pop_rsi, thread, self.pop_rdx, signal,
            self.pop_rax, arch.NR["tgkill"], self.syscall,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The words for some calls, whoever makes them and wherever results and answers go."""

    pieces: Pieces
    calls: Callable[[int], Sequence[Call]]
    """Given for an address of the answers; only that may differ in them."""
    signal: int
    count: int
    """Results; answers come behind them."""
    size: int
    """Bytes of the words."""

    @classmethod
    def of(cls, pieces: Pieces, calls: Callable[[int], Sequence[Call]], signal: int) -> "Chain":
        """The last call of each part is tgkill(2) with the signal."""
        groups = _groups(calls(0)).values()
        words = sum(WORDS_OF_CALL * len(group) + WORDS_OF_END for group in groups)
        count = sum(map(len, groups))
        return cls(pieces=pieces, calls=calls, signal=signal, count=count, size=WORD * words)

    def content(self, at: int, inside: tuple[int, int]) -> bytes:
        """For a thread: where its results go, and (process, thread) as it sees them."""
        end, found = self.pieces.end(*inside, self.signal), list[int]()
        for group in _groups(self.calls(at + WORD * self.count)).values():
            for i, call in group:
                found += self.pieces.words(call, at + WORD * i)
            found += end
        return struct.pack(f"<{len(found)}Q", *found)

    def passes(self, start: int, at: int) -> list[tuple[int, int, int, int]]:
        """For words that begin at ``start``: rsp, rsp at the end, r10 and r8 of each part."""
        found: list[tuple[int, int, int, int]] = []
        for (r10, r8), group in _groups(self.calls(at + WORD * self.count)).items():
            end = start + WORD * (WORDS_OF_CALL * len(group) + WORDS_OF_END)
            found.append((start + WORD, end, r10 & arch.WORD_MASK, r8 & arch.WORD_MASK))
            start = end
        return found


def find_pieces(pid: int, code: Sequence[maps.Vma]) -> Pieces | None:
    """The first of these mappings that has all pieces; mappings of files only."""
    for vma in code:
        if not vma.inode or vma.size > LARGEST_LIBRARY:
            continue
        identity = (vma.dev_major, vma.dev_minor, vma.inode, vma.offset, vma.size)
        if identity not in _known:
            _known[identity] = _search(pid, vma)
        offsets = _known[identity]
        if offsets is not None:
            return Pieces(*(vma.start + offset for offset in offsets))
    return None


def _search(pid: int, vma: maps.Vma) -> tuple[int, ...] | None:
    try:
        code = native.read_memory(pid, vma.start, vma.size)
    except KernelError:  # a part beyond the end of its file
        return None
    found = tuple(code.find(piece) for piece in PIECES)
    return found if min(found) >= 0 else None


def signal_for(status: bytes) -> int:
    """A signal that a thread would not notice, 0 when there is none or it has a filter."""
    pending, blocked, caught = proc.signal_masks(status)
    if proc.seccomp_mode(status):
        return 0
    taken = pending | blocked | caught
    return next((one for one in (SIGURG, SIGWINCH) if not taken >> one - 1 & 1), 0)


def _groups(calls: Sequence[Call]) -> dict[tuple[int, int], list[tuple[int, Call]]]:
    found: dict[tuple[int, int], list[tuple[int, Call]]] = {}
    for i, call in enumerate(calls):
        tail = (*call[1], 0, 0, 0, 0, 0)[3:5]
        found.setdefault((tail[0], tail[1]), []).append((i, call))
    return found

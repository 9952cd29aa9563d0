# SPDX-License-Identifier: Apache-2.0
"""Where in a process a borrowed thread can run system calls: gadget, way back, scratch.

See `kernel.remote` for what they are for. Found once for each mm; code is found by content
and checked again before each use, so a cache entry that is out of date does no harm.
"""

import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from signal import SIGKILL

from torpor.engine import native
from torpor.engine.errors import Bug, Error, KernelError, Refused, Vanished
from torpor.engine.kernel import maps, proc
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.arch.code import POP_RAX_RET, Gadget, find_gadgets
from torpor.engine.kernel.chain import Pieces, find_pieces

CHUNK = 1 << 20
OVERLAP = 128
PAGE = 4096
CLEARANCE = 2 * PAGE
PF_EXITING, PF_SIGNALED = 0x4, 0x400
LOOKS, LOOK_S = 20, 0.0005
"""What must lie between the scratch and the nearest stack pointer (red zone included)."""

MARK = struct.Struct("<8sQ")
MARK_WORD = b"torpor\0\1"
MARK_SIZE = MARK.size
LARGEST = 64 * PAGE

_Identity = tuple[int, int, int, int, int]
_Match = tuple[int, bytes, object]
_code_cache: dict[tuple[str, _Identity], _Match] = {}


@dataclass(frozen=True, slots=True)
class Scratch:
    """Room at the bottom of the stack.

    It begins with a mark, by which the next one who comes recognises what an engine that
    died left there.
    """

    start: int
    size: int

    @property
    def mark(self) -> bytes:
        """The first bytes while it is in use."""
        return MARK.pack(MARK_WORD, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a thread makes calls for us, and how it comes home."""

    gadget: Gadget
    syscall: int
    """Address of the gadget."""
    after_ret: int
    """Word that follows the chain: where the frame's own return address leads."""
    chain: bytes
    """Words below the frame that the gadget's `ret` goes through first; mostly none."""
    pieces: Pieces | None
    """For many calls in one go; None where its libraries have not all of them."""


@dataclass(slots=True, kw_only=True)
class AddressSpace:
    """One mm: made by `find`, which may be called while the process runs."""

    pid: int
    way: Way
    _proof: tuple[tuple[int, bytes], ...]
    _stack: tuple[int, int] | None
    """Of the initial stack; None when it is not mapped any more."""
    _scratch: Scratch | None = None
    _pointers: Sequence[int] | None = None

    @classmethod
    def find(
        cls, pid: int, vmas: Sequence[maps.Vma], status: proc.Status | None = None
    ) -> "AddressSpace":
        """Search a process. Raises Refused when it has no usable code.

        ``status`` is what its text says, when that was read already.
        """
        status = status or proc.parse_status(proc.read_text(pid, "status"))
        if status.shadow_stack:
            raise Refused(
                "uses a shadow stack",
                subject=f"task {pid}",
                remedy="start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            )
        code = [vma for vma in vmas if vma.prot[0] == "r" and vma.prot[2] == "x"]
        code = [vma for vma in code if vma.name != "[vsyscall]"]
        at, raw, found = _first(pid, "gadget", sorted(code, key=_vdso_first), _gadget_in)
        if not isinstance(found, Gadget):
            raise Bug("a gadget search gave something else")
        code.sort(key=_libc_first)
        back, proof = _way_back(pid, code, at)
        pieces = find_pieces(pid, code)
        stack = next(((v.start, v.end) for v in vmas if v.name == "[stack]"), None)
        return cls(
            pid=pid,
            way=Way(
                gadget=found,
                syscall=at,
                after_ret=back[-1],
                chain=b"".join(struct.pack("<Q", word) for word in back[:-1]),
                pieces=pieces,
            ),
            _proof=((at, raw), *proof, *(pieces.proof if pieces else ())),
            _stack=stack,
        )

    def verify(self) -> None:
        """Raise Vanished when the code is not there any more (an exec came in between)."""
        pieces = array("Q", [word for at, raw in self._proof for word in (at, len(raw))])
        if native.read_pieces(self.pid, pieces) != b"".join(raw for _, raw in self._proof):
            raise Vanished("has changed its code", subject=f"task {self.pid}")

    def holds(self) -> bool:
        """Whether the code is still there: no exec came since this was found."""
        try:
            self.verify()
        except (Vanished, KernelError):
            return False
        return True

    def scratch(self, size: int) -> Scratch:
        """Room of at least ``size`` bytes. All threads must be stopped by us."""
        if self._scratch is None or self._scratch.size < size:
            self._scratch = self._place(-(-size // PAGE) * PAGE)
        return self._scratch

    def unused_bytes(self) -> int:
        """Whole pages of stack below every stack pointer: scratch of them makes it no larger."""
        start, end = self._current_stack()
        pointers = [sp for sp in self._stack_pointers() if start <= sp < end]
        return max(min(pointers, default=start) - start - CLEARANCE, 0) // PAGE * PAGE

    def forget_scratch(self) -> None:
        """The process ran: stack pointers may be anywhere when it is stopped again."""
        self._scratch = None

    def stands(self, pointers: Sequence[int] | None) -> None:
        """The stack pointers of all its threads, which are stopped; None: they may run again."""
        self._pointers = pointers

    def _place(self, size: int) -> Scratch:
        if self._stack is None:
            return self._close_below(size)
        try:
            return self._at_the_end(size)
        except Refused as refused:
            with suppress(Refused):
                return self._close_below(size)
            raise refused from None

    def _at_the_end(self, size: int) -> Scratch:
        start, end = self._current_stack()
        pointers = sorted(sp for sp in self._stack_pointers() if start <= sp < end)
        start = self._above_live_nets(start, pointers)
        self._clear_dead_nets(start)
        pointers = [sp for sp in pointers if sp >= start]
        if pointers and pointers[0] - start < size + CLEARANCE:
            return Scratch(self._grow(size + CLEARANCE - (pointers[0] - start)), size)
        if not pointers and (size > end - start or not self._unused(start, size)):
            raise Refused(
                "has no thread on its initial stack, and that stack has no room",
                subject=f"task {self.pid}",
                remedy="try again",
            )
        return Scratch(start, size)

    def _close_below(self, size: int) -> Scratch:
        """Where a deeper call would write: what else is in that area, nobody knows."""
        start, end = self._stack_of_a_thread()
        pointer = min(sp for sp in self._stack_pointers() if start <= sp < end)
        at = (pointer - CLEARANCE - size) // PAGE * PAGE
        if at < start:
            raise Refused(
                "has no room on its initial stack, nor on that of a thread",
                subject=f"task {self.pid}",
                remedy="keep the initial stack mapped, or give its threads larger stacks",
            )
        return Scratch(at, size)

    def _above_live_nets(self, start: int, pointers: Sequence[int]) -> int:
        """Past the nets of engines that died through which a thread is still on its way home.

        Nets lie one above the other, and a context saved in one may lead to a lower one: so
        all are live up to the highest that holds a stack pointer.
        """
        free = at = start
        while size := self._left_by_the_dead(at):
            if any(at <= sp < at + size for sp in pointers):
                free = at + size
            at += size
        return free

    def _clear_dead_nets(self, start: int) -> None:
        """So that a net which is smaller than what lies there hides nothing of it.

        The highest first: nets without the ones below them would not be known any more.
        """
        dead = []
        while size := self._left_by_the_dead(start):
            dead.append((start, size))
            start += size
        for at, size in reversed(dead):
            native.write_memory(self.pid, at, bytes(size))

    def _left_by_the_dead(self, start: int) -> int:
        """Size of the scratch that an engine which died left here, or 0."""
        word, size = MARK.unpack(native.read_memory(self.pid, start, MARK_SIZE))
        is_net = word == MARK_WORD and 0 < size <= LARGEST and not size % arch.FPSTATE_ALIGN
        return size if is_net else 0

    def _unused(self, start: int, size: int) -> bool:
        """Never written to, or cleared."""
        return not any(native.read_memory(self.pid, start, size))

    def _current_stack(self) -> tuple[int, int]:
        """It may have grown since it was found; without it, that of the first thread with one."""
        if self._stack is None:
            return self._stack_of_a_thread()
        found = maps.area_with(proc.read_bytes(self.pid, "maps"), self._stack[1] - 1)
        if found is None:
            raise Vanished("has no stack any more", subject=f"task {self.pid}")
        return found

    def _stack_of_a_thread(self) -> tuple[int, int]:
        """Of the first that has one; it may consist of areas with different rights."""
        vmas: list[tuple[int, int]] = []
        for vma in maps.parse_maps(proc.read_text(self.pid, "maps")):
            if vma.inode or not vma.prot.startswith("rw") or vma.shared:
                continue
            if vmas and vmas[-1][1] == vma.start:
                vmas[-1] = vmas[-1][0], vma.end
            else:
                vmas.append((vma.start, vma.end))
        for sp in self._stack_pointers():
            for start, end in vmas:
                if start <= sp < end:
                    return start, end
        raise Refused(
            "has no [stack] mapping, and no thread on memory of its own",
            subject=f"task {self.pid}",
            remedy="keep the initial stack mapped",
        )

    def _stack_pointers(self) -> Iterator[int]:
        if self._pointers is not None:
            yield from self._pointers
            return
        tids = proc.threads(self.pid)
        for tid, regs in zip(tids, native.get_regs_of(tids), strict=True):
            if regs is not None:
                yield regs.rsp
                continue
            with suppress(Vanished):
                self._must_be_ending(tid)

    def _must_be_ending(self, tid: int) -> None:
        """Of a thread without registers to read: who is killed in its stop runs out of it.

        Between the moment that it takes the SIGKILL and that it is marked nothing tells of that
        (kernel/signal.c, get_signal; v6.18), so there are several looks.
        """
        for _ in range(LOOKS):
            stat = proc.parse_stat(proc.read_text(self.pid, f"task/{tid}/stat"))
            if stat.state in proc.ENDED or stat.flags & (PF_EXITING | PF_SIGNALED):
                return
            status = proc.read_bytes(self.pid, f"task/{tid}/status")
            if proc.signal_masks(status)[0] >> (SIGKILL - 1) & 1:
                return
            time.sleep(LOOK_S)
        raise Bug("a thread is not stopped", subject=f"task {tid}")

    def _grow(self, missing: int) -> int:
        """Let the stack grow down, as a deeper call would have done; returns its new start."""
        start = self._current_stack()[0]
        wanted = (start - missing) // PAGE * PAGE
        with suppress(KernelError):
            native.write_memory(self.pid, wanted, b"\0")
        grown = self._current_stack()[0]
        if grown > wanted:
            raise Refused(
                "its stack is used to the end and cannot grow",
                subject=f"task {self.pid}",
                remedy="raise its stack limit (ulimit -s)",
            )
        return grown


def _vdso_first(vma: maps.Vma) -> tuple[bool, bool]:
    return vma.name != "[vdso]", vma.inode == 0


def _libc_first(vma: maps.Vma) -> tuple[bool, int]:
    base = vma.name.rpartition("/")[2]
    known = base.startswith(("libc.so", "libc-", "ld-musl", "libpthread"))
    return not known, vma.size


def _way_back(
    pid: int, code: Sequence[maps.Vma], syscall: int
) -> tuple[list[int], tuple[tuple[int, bytes], ...]]:
    """Words that `ret` goes through to rt_sigreturn, and the code that they rely on."""
    try:
        at, raw, _ = _first(pid, "sigreturn", code, _sigreturn_in)
    except Refused:
        at, raw, _ = _first(pid, "pop rax", code, _pop_rax_in)
        return [at, arch.NR["rt_sigreturn"], syscall], ((at, raw),)
    return [at], ((at, raw),)


def _first(
    pid: int, what: str, vmas: Sequence[maps.Vma], search: Callable[[bytes], _Match | None]
) -> tuple[int, bytes, object]:
    """(address, bytes, detail) of the first match; read from the process, kept by file."""
    for vma in vmas:
        identity = (vma.dev_major, vma.dev_minor, vma.inode, vma.offset, vma.size)
        known = _code_cache.get((what, identity)) if vma.inode else None
        if known is None or not _still_there(pid, vma.start + known[0], known[1]):
            known = _search_vma(pid, vma, search)
        if known is not None:
            if vma.inode:
                _code_cache[what, identity] = known
            return vma.start + known[0], known[1], known[2]
    raise Refused(
        f"has no {what} instructions that could be borrowed",
        subject=f"task {pid}",
        remedy="run a program that is linked with a C library or is written in Go",
    )


def _still_there(pid: int, address: int, raw: bytes) -> bool:
    try:
        return native.read_memory(pid, address, len(raw)) == raw
    except Error:
        return False


def _search_vma(pid: int, vma: maps.Vma, search: Callable[[bytes], _Match | None]) -> _Match | None:
    for at in range(vma.start, vma.end, CHUNK):
        size = min(CHUNK + OVERLAP, vma.end - at)
        try:
            found = search(native.read_memory(pid, at, size))
        except KernelError:  # a part beyond the end of its file
            continue
        if found is not None:
            return at - vma.start + found[0], found[1], found[2]
    return None


@lru_cache(maxsize=4)
def _gadget_in(code: bytes) -> _Match | None:
    """All tasks have the same vDSO, mostly."""
    best = min(find_gadgets(code), key=lambda g: len(g.code), default=None)
    return (best.offset, best.code, best) if best else None


def _sigreturn_in(code: bytes) -> _Match | None:
    for sequence in arch.SIGRETURN_SEQUENCES:
        at = code.find(sequence)
        if at >= 0:
            return at, sequence, None
    return None


def _pop_rax_in(code: bytes) -> _Match | None:
    at = code.find(POP_RAX_RET)
    return (at, POP_RAX_RET, None) if at >= 0 else None

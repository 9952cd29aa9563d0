# SPDX-License-Identifier: Apache-2.0
"""Memory is forked while the tasks stand still, and read from the copies while they run on.

The pause is that of a fork: 25 to 32 ms for a GiB of small pages, 2 with huge ones (see
`kernel.fork` for how no mark is left). What a fork does not carry is copied while they stand
still: shared memory, areas that MADV_DONTFORK or MADV_WIPEONFORK has marked, rings; and so is a
task with little memory, for which a copy is quicker. What the tasks write before the copy has been
read costs them a page each; the copy is the first that the kernel kills when memory runs out.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torpor.engine import native
from torpor.engine.dump.ways.frozen import Frozen
from torpor.engine.dump.ways.undertaker import Undertaker
from torpor.engine.dump.ways.way import Part, Runs, Way
from torpor.engine.errors import Error, KernelError, Vanished
from torpor.engine.kernel import fork, pagemap, proc, room
from torpor.engine.kernel.addressspace import AddressSpace
from torpor.engine.options import MemoryWay

TRIES = 3


class Snapshot(Way):
    """A way for trees that run on.

    ``spaces`` has each task that is to fork itself, ``copied_bytes`` is room for the rest,
    ``trace`` are PTRACE_O_* of all threads, ``given`` cgroups of the tree.
    """

    kind = MemoryWay.SNAPSHOT

    def __init__(
        self,
        spaces: Mapping[int, AddressSpace],
        *,
        copied_bytes: int,
        trace: int,
        reason: str,
        given: Sequence[Path] = (),
    ) -> None:
        self.reason = reason
        self.writers = max(1, min(self.writers, processors() - 1))
        self._given = given
        self._spaces = spaces
        self._trace = trace
        self._frozen = Frozen(copied_bytes, reason)
        self._undertaker = Undertaker(spaces)
        self._copies: dict[int, fork.Copy] = {}
        self._late: dict[int, list[Part]] = {}
        self._files: list[int] = []
        self._failed: set[int] = set()

    def prepare(self) -> None:
        """Room for what is copied, and who comes after us."""
        self._frozen.prepare()
        self._undertaker.start()

    def refresh(self, spaces: Mapping[int, AddressSpace]) -> None:
        """Nothing of ours is to take a processor from the tasks in the pause, or right after it.

        Where calls are made for the questions, there is room for that of the fork.
        """
        self._spaces = {pid: spaces.get(pid, space) for pid, space in self._spaces.items()}
        self._undertaker.await_up()

    def take(self, parts: Sequence[Part]) -> None:
        """Fork; copy the rest."""
        for part in parts:
            if part.source is None and part.carried and self._has_copy(part.pid):
                self._late.setdefault(part.pid, []).append(part)
        late = {id(part) for found in self._late.values() for part in found}
        self._frozen.take([part for part in parts if id(part) not in late])

    def settle(self) -> None:
        """Find the pages in the copies."""
        for pid, parts in self._late.items():
            made = self._copies[pid]
            with self.reading():
                fork.leave_files(made)
                fork.offer(made)
                memory = pagemap.open_memory(made.pid)
                self._files.append(memory)
                for part in parts:
                    part.scan(made.pid)
                    part.source = Runs(native.of_file(memory), part.runs)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Say why a copy is gone."""
        try:
            yield
        except Vanished as error:
            raise self._why(error) from error

    def close(self) -> None:
        """Have the copies gone."""
        self._frozen.close()
        for fd in self._files:
            with suppress(OSError):
                os.close(fd)
        self._files.clear()
        for made in self._copies.values():
            fork.end(made)
        for made in self._copies.values():
            _forget(made)
        self._copies.clear()
        self._undertaker.end()

    def _why(self, error: Vanished) -> Error:
        """A copy was killed, or its parent has ended."""
        for pid, made in self._copies.items():
            if not _is_there(pid):
                return Vanished("has ended before its memory was read", subject=f"task {pid}",
                                remedy="take the checkpoint again")  # fmt: skip
            if not _is_there(made.pid):
                return KernelError(
                    "its snapshot was killed before it was read, the task runs on",
                    errno=errno.ENOMEM,
                    subject=f"task {pid}",
                    cause=room.limit_text(pid, self._given),
                    remedy="raise that limit, or have its memory copied (--memory frozen)",
                )
        return error

    def _has_copy(self, pid: int) -> bool:
        """Fork a task, once."""
        if pid not in self._copies and pid in self._spaces and pid not in self._failed:
            try:
                self._undertaker.expect(pid, self._trace)
                self._copies[pid] = fork.copy(pid, self._spaces[pid], self._trace)
                self._undertaker.bury(self._copies[pid])
            except (KernelError, Vanished) as error:
                self._failed.add(pid)
                self.reason += f"; but task {pid} was copied: {error.what} ({error.cause})"
        return pid in self._copies


def processors() -> int:
    """Those that we may run on; one is left to the tasks while their memory is written."""
    return len(os.sched_getaffinity(0))


def _forget(made: fork.Copy) -> None:
    """Try it some times. A parent that another traces keeps a zombie."""
    for _ in range(TRIES):
        with suppress(Error):
            fork.forget(made.parent, made.pid, made.ns_pid, made.options)
            return


def _is_there(pid: int) -> bool:
    with suppress(Vanished):
        return proc.parse_stat(proc.read_text(pid, "stat")).state not in "ZX"
    return False

# SPDX-License-Identifier: Apache-2.0
"""One operation of a program: almost always one system call made inside a task.

An operation is plain data: it can be printed (`describe`), compared in a golden file and
encoded to the bytes which native/executor runs. Arguments are integers, `Data` (bytes that
travel with the program; the call gets their address) or `Slot` (the result of an earlier
operation of the same program).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class Slot:
    """A named result of an earlier operation."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Bytes in the program's data area; the same object is placed once.

    ``pointers`` are (offset, Data) pairs: the 8 bytes at offset become that Data's address.
    ``align`` in bytes. Content that a call fills in is read back by `@load32`.
    """

    content: bytes
    align: int = 8
    pointers: tuple[tuple[int, "Data"], ...] = ()
    text: str = ""

    @staticmethod
    def path(name: str | bytes) -> "Data":
        """A NUL-terminated path."""
        raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
        return Data(raw + b"\0", 1, (), repr(raw.decode("utf-8", "replace")))

    @staticmethod
    def room(size_bytes: int) -> "Data":
        """Zeroed room for a call to write to."""
        return Data(bytes(size_bytes), 8, (), f"buffer[{size_bytes}]")


Arg = int | Data | Slot


class Expect(IntEnum):
    """What a result must be for the program to go on."""

    OK = 0
    """Not an error number."""
    ANY = 1
    """Whatever comes is fine."""
    EQUAL = 2
    """Exactly `Op.want`."""


@dataclass(slots=True, kw_only=True)
class Op:
    """``call`` is a system call's name, or `@load32` (Data, byte offset) → slot, or `@store64`.

    ``subject`` names the object (`fd 7 -> pipe:[9123]`), ``note`` says what for.
    ``remedy`` is what a user can do when it fails.

    ``undo`` takes back what it has made outside of the task (a name, a segment) when the restore
    fails later; it runs only if this one succeeded, which with `Expect.ANY` its slot tells. An
    operation that ``settles`` has taken away all that those before it made for its subject.

    ``by`` is the pid inside of a helper that makes the call in the task's place, with its table of
    descriptors: the kernel remembers who has made some objects.

    Nobody changes one; it is not frozen because there are thousands, and a frozen dataclass takes
    three times as long to be made.
    """

    call: str
    args: tuple[Arg, ...] = ()
    subject: str = ""
    note: str = ""
    remedy: str = ""
    expect: Expect = Expect.OK
    want: int = 0
    yields: Slot | None = None
    undo: tuple["Op", ...] = ()
    settles: bool = False
    by: int = 0

    def describe(self) -> str:
        """`openat(AT_FDCWD, '/data/log', 0x1, 0)  fd 7 -> /data/log: open for append`."""
        args = ", ".join(_show(a) for a in self.args)
        text = f"{self.call}({args})"
        if self.yields is not None:
            text += f" → {self.yields.name}"
        by = f"by task {self.by}" if self.by else ""
        tail = ": ".join(part for part in (self.subject, self.note, by) if part)
        return f"{text}  # {tail}" if tail else text


def _show(arg: Arg) -> str:
    if isinstance(arg, Slot):
        return f"${arg.name}"
    if isinstance(arg, Data):
        return arg.text or f"<{len(arg.content)} bytes>"
    signed = arg - (1 << 64) if arg >= 1 << 63 else int(arg)
    return str(signed) if -4096 < signed < 4096 else hex(arg)


@dataclass(slots=True)
class Made:
    """What operations have made outside of their task, so that it can be taken back."""

    done: list[tuple[Op, Mapping[str, int]]] = field(default_factory=list)
    """Operations that matter, and the slots of their program."""

    def note(self, ops: Iterable[Op], values: Mapping[str, int]) -> None:
        """Remember operations that have run."""
        known = dict(values)
        self.done += [(op, known) for op in ops if op.undo or op.settles]

    def undo(self) -> list[tuple[list[Op], Mapping[str, int]]]:
        """What to run, in this order, each with the slots that it needs."""
        settled: set[str] = set()
        found = []
        for op, values in reversed(self.done):
            if op.settles:
                settled.add(op.subject)
            elif op.subject not in settled and _succeeded(op, values):
                found.append((list(op.undo), values))
        return found


def _succeeded(op: Op, values: Mapping[str, int]) -> bool:
    if op.yields is None:
        return op.expect is not Expect.ANY
    return not values[op.yields.name] >> 63


@dataclass(slots=True)
class Program:
    """An ordered list of operations for one task, with a name for messages."""

    name: str
    ops: list[Op] = field(default_factory=list)

    def add(self, *ops: Op) -> None:
        """Append operations."""
        self.ops.extend(ops)

    def extend(self, ops: Iterable[Op]) -> None:
        """Append operations of an iterable."""
        self.ops.extend(ops)


def place(create: Op, fd: int) -> list[Op]:
    """Run ``create``, whose result is a new descriptor, and move it to number ``fd``."""
    made = create.yields or Slot(f"new{fd}")
    return [
        Op(
            call=create.call,
            args=create.args,
            subject=create.subject,
            note=create.note,
            remedy=create.remedy,
            yields=made,
        ),
        *move(made, fd, subject=create.subject),
    ]


def move(source: Slot, fd: int, *, subject: str = "") -> list[Op]:
    """Move the descriptor in a slot to number ``fd`` (not close-on-exec)."""
    return [
        Op(call="dup3", args=(source, fd, 0), subject=subject, expect=Expect.EQUAL, want=fd),
        Op(call="close", args=(source,), subject=subject),
    ]

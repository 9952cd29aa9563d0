# SPDX-License-Identifier: Apache-2.0
"""Runs operations in a forked child by ctypes, without the executor and without the engine.

A plan of a kind is tried alone: the child closes what the engine's seed would not have, runs
the operations, and then calls `check` with the descriptors in place.
"""

import ctypes
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.program.ops import Data, Expect, Op, Slot

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
TIME_LIMIT_S = 20


@dataclass(slots=True)
class Failed(Exception):
    """An operation did not give what it had to."""

    op: Op
    result: int

    def __str__(self) -> str:
        name = os.strerror(-self.result) if self.result < 0 else ""
        return f"{self.op.describe()}: {self.result} {name}"


class Runner:
    """Slots and memory of one run."""

    def __init__(self) -> None:
        self.slots: dict[str, int] = {}
        self.rooms: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.kept: list[Data] = []

    def address(self, data: Data) -> int:
        if id(data) not in self.rooms:
            content = bytearray(data.content)
            for offset, target in data.pointers:
                struct.pack_into("<Q", content, offset, self.address(target))
            self.rooms[id(data)] = ctypes.create_string_buffer(bytes(content), max(len(content), 1))
            self.kept.append(data)
        return ctypes.addressof(self.rooms[id(data)])

    def value(self, arg: int | Data | Slot) -> int:
        if isinstance(arg, Slot):
            return self.slots[arg.name]
        return self.address(arg) if isinstance(arg, Data) else arg

    def run(self, ops: Sequence[Op]) -> None:
        for op in ops:
            result = self.one(op)
            wrong = {
                Expect.OK: -4096 < result < 0,
                Expect.ANY: False,
                Expect.EQUAL: result != op.want,
            }[op.expect]
            if wrong:
                raise Failed(op, result)
            if op.yields is not None:
                self.slots[op.yields.name] = result

    def one(self, op: Op) -> int:
        args = [self.value(a) for a in op.args]
        if op.call == "@load32":
            offset = args[1] if len(args) > 1 else 0
            return int(ctypes.c_int32.from_address(args[0] + offset).value)
        if op.call == "@store64":
            ctypes.c_uint64.from_address(args[0]).value = args[1]
            return 0
        longs = [ctypes.c_long(a - (1 << 64) if a >> 63 else a) for a in args]
        result = libc.syscall(ctypes.c_long(syscall_number(op.call)), *longs)
        return int(result) if result != -1 else -ctypes.get_errno()


def run_in_child(ops: Sequence[Op], check: Callable[[Runner], None]) -> None:
    """Fork, run, check. Raises AssertionError with the child's traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(TIME_LIMIT_S)
            runner = Runner()
            runner.run(ops)
            check(runner)
            os.write(writer, b"ok")
        except BaseException:  # noqa: BLE001 - everything goes to the parent
            os.write(writer, traceback.format_exc().encode()[-60000:])
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(writer)
    text = b""
    while chunk := os.read(reader, 65536):
        text += chunk
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"child ended with status {status:#x} (14: it hung)"
    assert text == b"ok", text.decode()

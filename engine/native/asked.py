# SPDX-License-Identifier: Apache-2.0
"""Questions to many descriptors of a task in one go."""

import struct
from collections.abc import Sequence

from torpor.engine.asking import Answers, Questions
from torpor.engine.native.descriptors import MANY
from torpor.engine.native.seam import address_of, error_for, ffi, lib, new_uncleared

ROW, UNCLEAR = struct.Struct("<2i4Q"), struct.Struct("<4xi32x")
"""struct seam_asked"""
Asked = tuple[int, Questions, bytes]
"""A descriptor, what is asked of it, and the text of its link where that is to be looked up."""


def ask_fds(pid: int, pidfd: int, root: int, asked: Sequence[Asked]) -> list[Answers]:
    """Answers in their order; ``root`` is the directory that absolute paths start from."""
    table = bytearray(ROW.size * max(len(asked), 1))
    words: dict[Questions, tuple[object, int, int]] = {}
    paths, places = [], [0]
    at = 0
    for row, (fd, questions, path) in zip(range(0, len(table), ROW.size), asked, strict=False):
        known = words.get(questions)
        if known is None:
            found = ffi.from_buffer("struct seam_question[]", questions.words)
            known = words[questions] = found, address_of(found), len(questions.asked)
        path_at = 0
        if path:
            paths.append(ffi.from_buffer(path + b"\0"))
            path_at = address_of(paths[-1])
        ROW.pack_into(table, row, fd, 0, known[1], known[2], at, path_at)
        at += questions.size
        places.append(at)
    rows = ffi.from_buffer("struct seam_asked[]", table)
    room = new_uncleared("char[]", max(at, 1))
    lib.seam_ask_fds(pid, pidfd, root, rows, len(asked), room, 2 if len(asked) >= MANY else 1)
    raw = ffi.buffer(room)
    return [
        Answers(questions, raw[begin:end], not unclear)
        for (unclear,), (_, questions, _), begin, end in zip(
            UNCLEAR.iter_unpack(table), asked, places, places[1:], strict=False
        )
    ]


def order_files(pids: Sequence[int], fds: Sequence[int]) -> list[int]:
    """Places of descriptors of tasks in the kernel's order of descriptions; equal ones are one.

    Raises KernelError when they cannot be compared.
    """
    ranks = ffi.new("int[]", max(len(fds), 1))
    result = lib.seam_order_files(ffi.new("int[]", pids), ffi.new("int[]", fds), len(fds), ranks)
    if result < 0:
        raise error_for(result, "kcmp", f"{len(fds)} descriptors")
    return list(ranks[0 : len(fds)])

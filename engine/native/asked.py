# SPDX-License-Identifier: Apache-2.0
"""Questions to many descriptors of a task in one go."""

from collections.abc import Sequence

from torpor.engine.asking import Answers, Questions
from torpor.engine.native.descriptors import MANY
from torpor.engine.native.seam import error_for, ffi, lib, new_uncleared

Asked = tuple[int, Questions, bytes]
"""A descriptor, what is asked of it, and the text of its link where that is to be looked up."""


def ask_fds(pidfd: int, root: int, asked: Sequence[Asked]) -> list[Answers]:
    """Answers in their order; ``root`` is the directory that absolute paths start from."""
    rows = ffi.new("struct seam_asked[]", max(len(asked), 1))
    words, paths, size = {}, [], 0
    for row, (fd, questions, path) in zip(rows, asked, strict=False):
        if questions not in words:
            words[questions] = ffi.from_buffer("struct seam_question[]", questions.words)
        row.fd, row.questions, row.count = fd, words[questions], len(questions.asked)
        row.at = size
        size += questions.size
        if path:
            paths.append(ffi.from_buffer(path + b"\0"))
            row.path = paths[-1]
    room = new_uncleared("char[]", max(size, 1))
    lib.seam_ask_fds(pidfd, root, rows, len(asked), room, 2 if len(asked) >= MANY else 1)
    raw = memoryview(ffi.buffer(room))
    return [
        Answers(questions, raw[row.at : row.at + questions.size], is_whole=not row.unclear)
        for row, (_, questions, _) in zip(rows, asked, strict=False)
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

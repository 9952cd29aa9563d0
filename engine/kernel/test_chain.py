# SPDX-License-Identifier: Apache-2.0
"""Chains of calls: the words for a thread, what they run with, and who may have one."""

import struct

import pytest

from torpor.engine.kernel import chain
from torpor.engine.kernel.chain import WORDS_OF_CALL, WORDS_OF_END, Chain, Pieces

PIECES = Pieces(101, 102, 103, 104, 105, 106)
GETTID, PRCTL, TGKILL, KEYCTL = 186, 157, 234, 250


def calls(at):
    return [
        ("gettid", ()),
        ("prctl", (40, at + 32, 0, 0, 0)),
        ("prctl", (62, 0, 0, 0, at + 8)),
        ("keyctl", (0, -2, 0)),
    ]


def words(made, at, inside):
    raw = made.content(at, inside)
    assert len(raw) == made.size
    return struct.unpack(f"<{len(raw) // 8}Q", raw)


def call(number, rdi, rsi, rdx, result_at):
    return (101, rdi, 102, rsi, 103, rdx, 104, number, 105, 103, result_at, 106)


@pytest.mark.parametrize("at", [0x7FFD_0000_1000, 8])
def test_words_for_a_thread(at):
    found = words(Chain.of(PIECES, calls, 23), at, (7, 9))
    end = (101, 7, 102, 9, 103, 23, 104, TGKILL, 105)
    answers = at + 4 * 8
    assert found == (
        *call(GETTID, 0, 0, 0, at),
        *call(PRCTL, 40, answers + 32, 0, at + 8),
        *call(KEYCTL, 0, (1 << 64) - 2, 0, at + 24),
        *end,
        *call(PRCTL, 62, 0, 0, at + 16),
        *end,
    )


def test_a_part_for_each_pair_of_last_arguments():
    made = Chain.of(PIECES, calls, 23)
    start, at = 0x1000, 0x5000
    first = 8 * (3 * WORDS_OF_CALL + WORDS_OF_END)
    assert made.passes(start, at) == [
        (start + 8, start + first, 0, 0),
        (start + first + 8, start + made.size, 0, at + 4 * 8 + 8),
    ]


def status(pending="0", blocked="0", caught="0", seccomp=0):
    text = (
        f"Name:\tx\nNStgid:\t5\nNSpid:\t5\nSigPnd:\t{pending}\nShdPnd:\t0\nSigBlk:\t{blocked}\n"
        f"SigIgn:\t0\nSigCgt:\t{caught}\nSeccomp:\t{seccomp}\n"
    )
    return text.encode()


@pytest.mark.parametrize(
    ("text", "signal"),
    [
        (status(), 23),
        (status(blocked="400000"), 28),
        (status(caught="400000"), 28),
        (status(pending="400000"), 28),
        (status(blocked="8400000"), 0),
        (status(seccomp=2), 0),
    ],
)
def test_a_signal_that_means_nothing_to_it(text, signal):
    assert chain.signal_for(text) == signal

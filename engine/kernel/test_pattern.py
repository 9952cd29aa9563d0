# SPDX-License-Identifier: Apache-2.0
"""A pattern, filled in as C does it, gives the net that is planned for a thread."""

import struct

import pytest

from torpor.engine import native
from torpor.engine.kernel import pattern
from torpor.engine.kernel.addressspace import Scratch, Way
from torpor.engine.kernel.arch import x86_64 as arch
from torpor.engine.kernel.arch.code import Gadget
from torpor.engine.kernel.chain import Chain, Pieces
from torpor.engine.kernel.net import Facts, Net
from torpor.engine.kernel.pattern import Question

WORDS = arch.Regs.WORDS
REGION, INSIDE = 0x7FFD_1234_5040, (41, 77)


def calls(at):
    return [("gettid", ()), ("prctl", (40, at + 8)), ("prctl", (62, 0, 0, 0, at)), ("close", (-2,))]


def way(base="rsp", chain=b"", pieces=None):
    gadget = Gadget(offset=1, base=base, distance=24, code=b"\x0f\x05\xc3")
    return Way(gadget=gadget, syscall=0x7000, after_ret=0x8000, chain=chain, pieces=pieces)


def facts(xstate_size):
    return Facts(
        tid=77,
        original=arch.Regs.unpack(struct.pack(f"<{WORDS}Q", *range(0x1_0000, 0x1_0000 + WORDS))),
        restart=arch.Regs.unpack(struct.pack(f"<{WORDS}Q", *range(0x2_0000, 0x2_0000 + WORDS))),
        mask=0x1234_0000_5678,
        xstate=bytes(i * 7 % 251 for i in range(xstate_size)),
    )


def edited(regs, edits):
    words = list(before := struct.unpack(f"<{WORDS}Q", regs.pack()))
    for to, source, plus, moves in edits:
        value = (before[source] if source >= 0 else 0) + plus + moves * REGION
        words[to] = value & arch.WORD_MASK
    return arch.Regs.unpack(struct.pack(f"<{WORDS}Q", *words))


def filled(words, stands):
    sources = stands.restart.pack(), struct.pack("<Q", stands.mask), stands.xstate
    content = bytearray(words.content)
    for at, region, process, thread in words.sums:
        (value,) = struct.unpack_from("<Q", content, at)
        value += region * REGION + process * INSIDE[0] + thread * INSIDE[1]
        struct.pack_into("<Q", content, at, value & arch.WORD_MASK)
    for source, begin, at, size in words.pieces:
        content[at : at + size] = sources[source][begin : begin + size]
    return bytes(content)


@pytest.mark.parametrize("xstate_size", [0, 2696, 832])
@pytest.mark.parametrize("signal", [0, 23])
@pytest.mark.parametrize("base", ["rsp", "rbp"])
def test_a_net_by_its_pattern(monkeypatch, base, signal, xstate_size):
    found = []
    monkeypatch.setattr(native, "Pattern", found.append)
    pieces = Pieces(101, 102, 103, 104, 105, 106)
    here = way(base, struct.pack("<Q", 99), pieces)
    question = Question(calls=calls, answer_bytes=32)
    made = pattern._pattern.__wrapped__(here, question, signal, xstate_size)
    (words,) = found

    stands = facts(xstate_size)
    chain = Chain.of(pieces, calls, signal) if signal else None
    room = 32 + (8 * chain.count + chain.size if chain else 0)
    net = Net.of(stands, here, Scratch(REGION, made.room), room)
    content = chain.content(net.buffer, INSIDE) if chain else b""
    start = net.chain_at - len(content)
    whole = net.region.mark + bytes(start - REGION - 16) + content + net.content
    assert filled(words, stands).ljust(len(whole), b"\0")[: len(whole)] == whole
    assert len(whole) <= len(words.content) <= made.room
    assert edited(stands.original, words.armed) == net.armed

    base_of_calls = net.armed.copy() if chain else net.base
    if chain:
        base_of_calls.rip = pieces.pop_rdi
    assert edited(stands.original, words.base) == base_of_calls
    assert made.buffer_at == words.answer_at == net.buffer - REGION
    assert words.answer_size == 32 + 8 * made.results
    assert [
        (REGION + first, REGION + last, r10, r8 + moves * REGION & arch.WORD_MASK)
        for first, last, r10, r8, moves in words.passes
    ] == (chain.passes(start, net.buffer) if chain else [])

# SPDX-License-Identifier: Apache-2.0
"""Digests of pages files, and filling memory while they are made."""

import ctypes
import os
import random
from array import array

import pytest

from torpor.engine import native

PIECE = 256 << 10
PAGE = 4096


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_xxh64_of_known_texts(data, expected):
    assert native.xxh64(data) == expected


def plain_digest(data):
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    return f"{native.xxh64(b''.join(native.xxh64(p).to_bytes(8, 'little') for p in pieces)):016x}"


@pytest.mark.parametrize("size", [0, 1, PAGE, PIECE, PIECE + 1, 5 * PIECE - PAGE])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_digest_of_a_file(tmp_path, size, threads):
    data = random.Random(size).randbytes(size)
    (tmp_path / "pages").write_bytes(data)
    fd = os.open(tmp_path / "pages", os.O_RDONLY)
    try:
        assert native.digest_file(fd, threads) == plain_digest(data)
    finally:
        os.close(fd)


def test_checked_fill_writes_runs_and_reads_the_rest(tmp_path):
    chance = random.Random(4)
    data = chance.randbytes(3 * PIECE + 7 * PAGE)
    (tmp_path / "pages").write_bytes(data)
    target = ctypes.create_string_buffer(2 * len(data))
    base = ctypes.addressof(target)
    runs, expected, offset, at = array("Q"), bytearray(2 * len(data)), 0, 0
    while offset < len(data):
        size = min(chance.choice((PAGE, 3 * PAGE, 70 * PAGE)), len(data) - offset)
        if chance.random() < 0.8:
            at += chance.choice((0, PAGE))
            runs.extend((base + at, size, offset))
            expected[at : at + size] = data[offset : offset + size]
            at += size
        offset += size
    fd = os.open(tmp_path / "pages", os.O_RDONLY)
    try:
        assert native.fill(os.getpid(), runs, fd, with_digest=True).digest == plain_digest(data)
    finally:
        os.close(fd)
    assert target.raw == bytes(expected)

# SPDX-License-Identifier: Apache-2.0
"""Framing: round trips, and files that somebody broke."""

import io
import struct
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.engine.errors import BadImage, Bug
from torpor.engine.images.format import Entry, Writer, read_entries
from torpor.engine.images.kinds import (
    BY_PREFIX,
    BY_STEM,
    NUMBERED,
    PAYLOADS,
    SERVICE,
    file_name,
    kind_of,
    payload_of,
)
from torpor.engine.images.magic import Magic
from torpor.engine.images.proto import criu_pb2 as pb


def written(name: str, *entries: tuple) -> bytes:
    out = io.BytesIO()
    writer = Writer(out, file_name(name), kind_of(name))
    for message, payload in entries:
        writer.add(message, payload)
    writer.finish()
    return out.getvalue()


def read(name: str, data: bytes, **options) -> list[Entry]:
    return list(read_entries(io.BytesIO(data), file_name(name), kind_of(name), **options))


def attempt(name: str, data: bytes) -> list[Entry] | BadImage:
    try:
        return read(name, data)
    except BadImage as bad:
        return bad


def pipe(payload: bytes) -> tuple:
    return pb.pipe_data_entry(pipe_id=1, bytes=len(payload), size=65536), payload


def test_first_words_are_those_of_criu():
    assert written("pstree") == bytes.fromhex("19435654 30302750")
    assert written("inventory") == bytes.fromhex("16313158")
    assert written("stats-dump") == bytes.fromhex("40591055 06330957")


def test_a_pipe_as_criu_writes_it():
    # pipes-data.img of a pipe with "hello pipe" in it, CRIU 4.2.1
    data = bytes.fromhex(
        "19435654 09374556 0a000000 08be8504 100a1880 8004 68656c6c6f2070697065".replace(" ", "")
    )
    (entry,) = read("pipes-data", data)
    assert entry.message.pipe_id == 0x102BE
    assert entry.payload == b"hello pipe"
    assert written("pipes-data", (entry.message, entry.payload)) == data


def test_message_queues_as_criu_writes_them():
    # ipcns-msg of a queue with "hello" and "hello world!", CRIU 4.2.1: text padded to eight
    data = bytes.fromhex(
        "19435654373745551800000"
        "00a1008d20910001800200028003080033800108080011802"
        "04000000080110"
        "0568656c6c6f000000"
        "040000000802100c68656c6c6f20776f726c642100000000"
    )
    queue, first, second = read("ipcns-msg-11", data)
    assert (queue.message.qnum, first.payload, second.payload) == (2, b"hello", b"hello world!")
    again = [(entry.message, entry.payload) for entry in (queue, first, second)]
    assert written("ipcns-msg-11", *again) == data


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_payloads_come_back(payloads):
    data = written("pipes-data", *(pipe(payload) for payload in payloads))
    assert [entry.payload for entry in read("pipes-data", data)] == payloads
    for entry in read("pipes-data", data, payloads=False):
        assert entry.payload == b""
        place = slice(entry.payload_offset, entry.payload_offset + entry.payload_bytes)
        assert data[place] == payloads.pop(0)


@given(st.lists(st.tuples(st.integers(0, 2**63), st.binary(min_size=1, max_size=99)), max_size=5))
def test_ghost_chunks_come_back(chunks):
    head = pb.ghost_file_entry(uid=0, gid=0, mode=0o644, chunks=True, size=2**63)
    body = [(pb.ghost_chunk_entry(len=len(data), off=off), data) for off, data in chunks]
    found = read("ghost-file-1", written("ghost-file-1", (head, b""), *body))
    assert [(e.message.off, e.payload) for e in found[1:]] == chunks


def test_plain_ghost_runs_to_the_end():
    head = pb.ghost_file_entry(uid=0, gid=0, mode=0o644)
    (entry,) = read("ghost-file-2", written("ghost-file-2", (head, b"contents")))
    assert entry.payload == b"contents"


@given(st.binary(max_size=15))
def test_names_need_not_be_utf8(comm):
    core = pb.task_core_entry(
        task_state=1, exit_code=0, personality=0, flags=0, blk_sigset=0, comm=comm
    )
    assert pb.task_core_entry.FromString(core.SerializeToString()).comm == comm


@pytest.mark.parametrize("name", ["pipes-data", "ipcns-msg-1", "pagemap-7", "tcp-stream-a"])
def test_every_truncation_is_noticed_or_ends_between_entries(name):
    entries = {
        "pipes-data": [pipe(b"abc"), pipe(b"defg")],
        "pagemap-7": [
            (pb.pagemap_head(pages_id=1), b""),
            (pb.pagemap_entry(vaddr=4096, compat_nr_pages=1), b""),
        ],
        "ipcns-msg-1": [
            (pb.ipc_msg_entry(desc=descriptor(), qbytes=9, qnum=1), b""),
            (pb.ipc_msg(mtype=1, msize=3), b"abc"),
        ],
        "tcp-stream-a": [(stream(inq_len=3, outq_len=2), b"abcde")],
    }[name]
    whole = written(name, *entries)
    complete = len(read(name, whole))
    for length in range(len(whole)):
        found = attempt(name, whole[:length])
        if isinstance(found, BadImage):
            assert found.subject.startswith(f"{name}.img, byte ")
            assert found.remedy
        else:
            assert len(found) < complete


@given(st.binary(max_size=200), st.sampled_from([*sorted(BY_STEM), "core-1", "ghost-file-a"]))
def test_garbage_is_a_bad_image(garbage, name):
    kind = kind_of(name)
    head = struct.pack("<II", kind.family, kind.magic) if kind.family else b""
    for data in (garbage, head + garbage):
        found = attempt(name, data)
        assert isinstance(found, list) or found.subject


def test_wrong_magic_names_file_and_both_words():
    with pytest.raises(BadImage) as caught:
        read("core-9", written("mm-9"))
    assert caught.value.subject == "core-9.img, byte 4"
    assert "0x57492820" in caught.value.cause


@pytest.mark.parametrize(
    ("tail", "what"),
    [
        (b"\xff\xff\xff\x7f", "claims 2147483647 bytes"),
        (b"\x00\x10\x00\x00ab", "4096 bytes, 2 are left"),
        (b"\x02\x00\x00\x00\x08\x01", "lacks a required field"),
        (b"\x02\x00\x00\x00\xff\xff", "not a pstree_entry"),
        (b"\x01\x00", "4 bytes, 2 are left"),
    ],
)
def test_hostile_lengths(tail, what):
    with pytest.raises(BadImage) as caught:
        read("pstree", written("pstree") + tail)
    assert what in caught.value.what


def test_a_huge_payload_is_not_read_at_once():
    with tempfile.TemporaryFile() as stream:
        stream.write(written("ghost-file-1", (pb.ghost_file_entry(uid=0, gid=0, mode=0), b"")))
        stream.truncate(80 << 20)
        kind = kind_of("ghost-file-1")
        with pytest.raises(BadImage):
            list(read_entries(stream, "ghost-file-1.img", kind))
        (entry,) = read_entries(stream, "ghost-file-1.img", kind, payloads=False)
        assert entry.payload_offset + entry.payload_bytes == 80 << 20


def test_bytes_behind_the_last_message():
    queue = pb.ghost_file_entry(uid=0, gid=0, mode=0, chunks=True)
    with pytest.raises(BadImage):
        read("ghost-file-1", written("ghost-file-1", (queue, b"")) + b"x")


def test_writer_refuses_what_the_format_does_not_have():
    out = Writer(io.BytesIO(), "pipes-data.img", kind_of("pipes-data"))
    with pytest.raises(Bug, match="says 3 bytes follow, not 2"):
        out.add(pb.pipe_data_entry(pipe_id=1, bytes=3), b"ab")
    with pytest.raises(Bug, match="does not belong here"):
        out.add(pb.fs_entry(cwd_id=1, root_id=1))
    with pytest.raises(Bug, match="not complete"):
        out.add(pb.pipe_data_entry())
    with pytest.raises(Bug, match="pagemap_head is missing"):
        written("pagemap-1")


def test_payload_from_a_descriptor():
    with tempfile.TemporaryFile() as source:
        source.write(b"x" * 100 + b"contents")
        source.flush()
        out = io.BytesIO()
        writer = Writer(out, "ghost-file-1.img", kind_of("ghost-file-1"))
        writer.add_from(pb.ghost_file_entry(uid=0, gid=0, mode=0), source.fileno(), 100, 8)
        assert read("ghost-file-1", out.getvalue())[0].payload == b"contents"
        writer = Writer(io.BytesIO(), "ghost-file-1.img", kind_of("ghost-file-1"))
        with pytest.raises(Bug, match="file ended"):
            writer.add_from(pb.ghost_file_entry(uid=0, gid=0, mode=0), source.fileno(), 100, 9)


def test_names_lead_to_kinds():
    assert kind_of("core-41").magic is Magic.CORE
    assert kind_of("pagemap-shmem-1025").magic is Magic.PAGEMAP
    assert kind_of("tcp-stream-e8dd").magic is Magic.TCP_STREAM
    assert kind_of("pages-1") is None
    assert kind_of("tmpfs-dev-23.tar.gz") is None
    for stem in BY_STEM:
        assert file_name(stem).endswith(".img") != (stem in SERVICE)
    for prefix in BY_PREFIX:
        assert NUMBERED.fullmatch(f"{prefix}-1f")[1] == prefix


def test_every_magic_has_a_kind():
    known = {kind.magic for kind in (*BY_STEM.values(), *BY_PREFIX.values())}
    assert known | {Magic.IMG_COMMON, Magic.IMG_SERVICE} == set(Magic)


def test_messages_without_payload_have_none():
    assert pb.fs_entry not in PAYLOADS
    assert payload_of(pb.fs_entry(cwd_id=1, root_id=1)).size == 0


def descriptor() -> pb.ipc_desc_entry:
    return pb.ipc_desc_entry(key=1, uid=0, gid=0, cuid=0, cgid=0, mode=0, id=0)


def stream(**lengths) -> pb.tcp_stream_entry:
    return pb.tcp_stream_entry(
        inq_seq=1, outq_seq=1, opt_mask=0, snd_wscale=0, mss_clamp=1460, **lengths
    )

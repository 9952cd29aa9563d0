# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.bpfmap import KIND
from torpor.engine.files.common import O
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import BpfContent, FileId

CONTENT = BpfContent(name=b"counts", count=2, keys=b"k" * 8, values=b"v" * 16)


def view(map_type=1, flags=O.RDWR | O.CLOEXEC, frozen=0, content=CONTENT):
    return RecordedFd(
        link="anon_inode:bpf-map", st_mode=0o600, flags=flags, bpf=content,
        info=(f"map_type:\t{map_type}", "key_size:\t4", "value_size:\t8", "max_entries:\t16",
              "map_flags:\t0x1", "map_extra:\t0x0", "memlock:\t1512", "map_id:\t25",
              f"frozen:\t{frozen}"),
    )  # fmt: skip


def lines(states, *ids):
    text = described(KIND, states, plan_context(*ids))
    return [line.split("  #")[0] for line in text.splitlines()]


def test_a_hash_with_content():
    states = {FileId(1): KIND.collect(view(frozen=1), dump_context())}
    back, images = through_images(KIND, states)
    assert back == states
    ((data, payload),) = images.entries("bpfmap-data")
    assert (data.map_id, data.count, payload) == (25, 2, CONTENT.keys + CONTENT.values)
    assert lines(back, 1) == [
        "bpf(0, counts, 72) → map513", "dup3($map513, 513, 0)", "close($map513)",
        "bpf(26, 2 entries, 56)", "bpf(22, <4 bytes>, 4)",
    ]  # fmt: skip


def test_descriptions_of_one_map():
    empty = BpfContent(name=b"")
    states = {
        FileId(i): KIND.collect(view(2, flags, content=empty), dump_context())
        for i, flags in ((1, O.RDWR), (2, 0))
    }
    back, _ = through_images(KIND, states)
    assert back == states
    assert lines(back, 1, 2)[3:] == [
        "bpf(15, info, 16)", "@load32(buffer[88], 4) → map_id513", "@store64(by id, $map_id513)",
        "bpf(14, by id, 12) → map514", "dup3($map514, 514, 0)", "close($map514)",
    ]  # fmt: skip
    only = {FileId(2): back[FileId(2)]}
    assert lines(only, 2)[1] == "dup3($map600, 600, 0)"
    assert lines(only, 2)[-1] == "close(600)"


@pytest.mark.parametrize("refused", [view(6), view(content=BpfContent(name=b"", ifindex=3))])
def test_limits(refused):
    with pytest.raises(Refused):
        KIND.collect(refused, dump_context())


@pytest.mark.parametrize("change", [{"count": 3}, {"keys_bytes": 4}])
def test_bad_images(change):
    states = {FileId(1): KIND.collect(view(), dump_context())}
    _, images = through_images(KIND, states)
    entry, payload = next(images.entries("bpfmap-data"))
    entry.MergeFrom(pb.bpfmap_data_entry(**{"map_id": 25, **change}))
    images.images["bpfmap-data"] = []
    images.add("bpfmap-data", entry, payload)
    with pytest.raises(BadImage):
        KIND.decode(images)

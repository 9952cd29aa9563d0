# SPDX-License-Identifier: Apache-2.0
"""Mappings against texts recorded on Linux 6.18."""

from tests.fixtures.proc_texts import fixture
from torpor.engine.kernel import maps


def test_maps():
    areas = maps.parse_maps(fixture("maps"))
    assert len(areas) == 28
    text = areas[1]
    assert (text.start, text.end, text.prot, text.offset) == (
        0x56358BCBD000,
        0x56358BCBE000,
        "r-xp",
        0x1000,
    )
    assert (text.dev_major, text.dev_minor, text.inode) == (0xFE, 0, 9977937)
    assert text.name == "/tmp/fixture-target"
    odd, gone = areas[15:17]
    assert odd.name == "/tmp/fixture\nline (deleted)"
    assert odd.deleted
    assert (gone.shared, gone.size) == (True, 4096)
    assert areas[6].name == ""
    assert areas[-1].start == 0xFFFFFFFFFF600000


def test_smaps_has_the_same_mappings():
    smaps = maps.parse_smaps(fixture("smaps"))
    areas = maps.parse_maps(fixture("maps"))
    assert [(v.start, v.end, v.prot, v.name) for v in smaps] == [
        (v.start, v.end, v.prot, v.name) for v in areas
    ]
    stack = next(v for v in smaps if v.name == "[stack]")
    assert "gd" in stack.vm_flags
    assert stack.anonymous_kb > 0
    assert stack.swap_kb == 0
    area = next(v for v in smaps if v.start == 0x7F6D7F2FB000)
    assert area.anonymous_kb >= 8
    assert area.rss_kb >= area.anonymous_kb


def test_area_with_an_address():
    text = fixture("maps").encode()
    for vma in maps.parse_maps(text.decode()):
        assert maps.area_with(text, vma.start) == (vma.start, vma.end)
        assert maps.area_with(text, vma.end - 1) == (vma.start, vma.end)
    assert maps.area_with(text, 0) is None
    assert maps.area_with(b"", 4096) is None

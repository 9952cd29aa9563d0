# SPDX-License-Identifier: Apache-2.0
"""The vDSO of the running kernel, blocks of other kernels, and how one stands for the other."""

import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torpor.engine.errors import BadImage
from torpor.engine.kernel.arch.x86_64 import syscall_number
from torpor.engine.kernel.maps import parse_maps
from torpor.engine.memory import vdso
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group


def running():
    """The code of this process's vDSO."""
    maps = parse_maps(Path("/proc/self/maps").read_text())
    (block,) = [vma for vma in maps if vma.name == "[vdso]"]
    with Path("/proc/self/mem").open("rb") as memory:
        memory.seek(block.start)
        return memory.read(block.end - block.start)


def block(start, *parts):
    """A group of (word, pages) from ``start`` on."""
    found, at = [], start
    for word, pages in parts:
        found.append((word, at, at + 4096 * pages))
        at += 4096 * pages
    return Group(start=start, end=at, parts=tuple(found))


BEFORE = block(0x7FFD00000000, ("vvar", 4), ("vdso", 2))
"""Until Linux 6.12."""
NOW = block(0x7FFE00000000, ("vvar", 4), ("vvar", 2), ("vdso", 2))
"""Since Linux 6.13: [vvar], [vvar_vclock], [vdso]."""


def as_areas(group):
    return [Area(start=start, end=end, prot=1, backing=Backing(word))
            for word, start, end in group.parts]  # fmt: skip


def test_symbols_of_the_running_kernel():
    found = vdso.symbols(running())
    assert {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time"} <= set(found)
    assert all(0 < offset < len(running()) for offset in found.values())
    assert vdso.is_vdso(running())


@pytest.mark.parametrize(
    "image",
    [b"", b"\x7fELF", b"\x7fELF\x01" + bytes(8000), bytes(8192), Path("/bin/true").read_bytes()],
)
def test_what_is_no_vdso(image):
    assert vdso.symbols(image) == {}
    assert not vdso.is_vdso(image)


@given(st.integers(0, 4095), st.binary(min_size=1, max_size=64))
@example(1194, b"\0\0\0\0\0\x80")
def test_a_damaged_vdso_raises_nothing(at, noise):
    image = bytearray(running())
    image[at : at + len(noise)] = noise
    assert isinstance(vdso.symbols(bytes(image)), dict)


@given(st.integers(0, 8192))
def test_a_truncated_vdso_raises_nothing(length):
    assert isinstance(vdso.symbols(running()[:length]), dict)


@pytest.mark.parametrize("shape", [BEFORE, NOW])
def test_group(shape):
    others = [Area(start=0x1000, end=0x2000, prot=3, backing=Backing.ANON)]
    found = vdso.group(others + as_areas(shape)[::-1])
    assert found == shape
    assert found.code == shape.parts[-1][1:]
    assert vdso.group(others) is None
    assert vdso.check(as_areas(shape), "task 41") is None


def test_data_without_code_is_refused():
    refused = vdso.check(as_areas(NOW)[:2], "task 41")
    assert refused.subject == "task 41"
    assert refused.what == vdso.LIMITS[0].what
    assert vdso.check([], "task 41") is None


def test_an_equal_one_is_moved():
    code, old = running(), block(0x7FFD12340000, ("vvar", 4), ("vvar", 2), ("vdso", 2))
    plan = vdso.plan(old, code, NOW, code, 0x10000000)
    assert (plan.keep_old_code, plan.patches) == (False, ())
    assert [(m.source, m.size_bytes, m.target) for m in plan.moves] == [
        (start, end - start, start - NOW.start + old.start) for _, start, end in NOW.parts
    ]


def test_data_areas_joined_by_criu_are_of_the_same_shape():
    joined = block(0x7FFD12340000, ("vvar", 6), ("vdso", 2))
    assert vdso.plan(joined, running(), NOW, running(), 0).keep_old_code is False


def test_no_old_one():
    plan = vdso.plan(None, None, NOW, running(), 0)
    assert (plan.moves, plan.keep_old_code) == ((), False)


def other_build():
    return running().replace(b"\0" * 16, b"\0" * 15 + b"\1", 1)


@pytest.mark.parametrize("code", [running(), other_build()])
def test_another_one_jumps(code):
    """Of another shape, or of the same with other bytes."""
    old = BEFORE if code == running() else block(0x7FFD12340000, ("vvar", 6), ("vdso", 2))
    spare = 0x20000000
    plan = vdso.plan(old, code, NOW, running(), spare)
    assert plan.keep_old_code
    assert [m.target for m in plan.moves] == [spare, spare + 0x4000, spare + 0x6000]
    offsets = vdso.symbols(running())
    patches = dict(plan.patches)
    assert len(patches) == len(set(offsets.values()))
    for offset in offsets.values():
        patch = patches[old.code[0] + offset]
        assert len(patch) == vdso.JUMP_BYTES
        assert (patch[:2], patch[-2:]) == (b"\x48\xb8", b"\xff\xe0")  # mov rax; jmp rax
        (target,) = struct.unpack("<Q", patch[2:10])
        assert target == spare + 0x6000 + offset


def renamed(old, new):
    assert len(old) == len(new)
    return running().replace(old, new)


def test_a_function_that_is_missing_becomes_its_system_call():
    current = renamed(b"__vdso_getcpu", b"__vdso_gotcha")
    plan = vdso.plan(BEFORE, running(), NOW, current, 0x20000000)
    patch = dict(plan.patches)[BEFORE.code[0] + vdso.symbols(running())["__vdso_getcpu"]]
    assert patch == b"\xb8" + struct.pack("<I", syscall_number("getcpu")) + b"\x0f\x05\xc3"


def test_a_function_that_nothing_stands_for_is_refused():
    old = renamed(b"__vdso_getcpu", b"__vdso_gotcha")
    with pytest.raises(BadImage, match="lacks __vdso_gotcha") as error:
        vdso.plan(BEFORE, old, NOW, running(), 0x20000000)
    assert error.value.remedy


@pytest.mark.parametrize("code", [None, bytes(8192)])
def test_an_image_without_code(code):
    with pytest.raises(BadImage) as error:
        vdso.plan(BEFORE, code, NOW, running(), 0x20000000)
    assert error.value.subject == "vdso"

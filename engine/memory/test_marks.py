# SPDX-License-Identifier: Apache-2.0
"""Guard regions, seals and locks: from VmFlags, through torpor.json, to calls."""

import pytest

from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.maps import Vma
from torpor.engine.memory import marks
from torpor.engine.memory.marks import Marks


def vma(start, *flags, name=""):
    return Vma(
        start=start, end=start + 0x1000, prot="rw-p", offset=0, dev_major=0, dev_minor=0, inode=0,
        name=name, vm_flags=frozenset(flags),
    )  # fmt: skip


VDSO = vma(0x9000, "rd", name="[vdso]")


@pytest.mark.parametrize(
    ("vmas", "wanted"),
    [
        ((vma(0x1000), vma(0x2000, "lo"), VDSO), Marks()),
        ((vma(0x1000, "lo"), vma(0x2000, "lo"), VDSO), Marks(lock_future=2)),
        ((vma(0x1000, "lo"), vma(0x3000, "dp"), VDSO), Marks(lock_future=2)),
        ((VDSO,), Marks()),
        (
            (vma(0x1000, "lo", "lf"), vma(0x2000)),
            Marks(on_fault=((0x1000, 0x2000),)),
        ),
        (
            (vma(0x1000, "lo", "lf"), VDSO),
            Marks(on_fault=((0x1000, 0x2000),), lock_future=6),
        ),
        ((vma(0x1000, "sl"), vma(0x2000, "gu")), Marks(sealed=((0x1000, 0x2000),))),
    ],
)
def test_from_flags(vmas, wanted):
    assert marks.collect(vmas, ()) == wanted
    assert marks.decode(marks.encode(wanted), ()) == wanted


def test_guards_are_given():
    found = marks.collect((vma(0x1000, "gu"),), [(0x1000, 0x2000)])
    assert found.guards == ((0x1000, 0x2000),)
    entry = pb.mm_entry()
    marks.encode_guards(found, entry.vmas)
    assert marks.decode(marks.encode(found), marks.decode_guards(entry.vmas)) == found
    assert [marks.may_have_guards(one) for one in (vma(0, "gu"), vma(0))] == [True, False]


def test_images_without():
    assert marks.decode(None, ()) == marks.NONE
    assert marks.encode(marks.NONE) == {}


def test_calls():
    both = Marks(guards=((0x1000, 0x3000),), sealed=((0x5000, 0x6000),), lock_future=6)
    assert [op.describe() for op in marks.plan_guards(both)] == [
        "madvise(0x1000, 0x2000, 102)  # 1000-3000: guard region"
    ]
    assert [op.describe() for op in marks.plan_last(both)] == [
        "mlockall(6)  # memory: later mappings are locked",
        "mseal(0x5000, 0x1000, 0)  # 5000-6000: sealed",
    ]

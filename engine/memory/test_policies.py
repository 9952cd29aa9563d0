# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.memory import policies
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.policies import Policies

USUAL = """\
55a0000000 default file=/usr/bin/a mapped=3 N0=3 kernelpagesize_kB=4
7ffe3ac41000 default stack anon=3 dirty=3 active=1 N0=3 kernelpagesize_kB=4
"""
BOUND = """\
55a0000000 bind:0 file=/usr/bin/a mapped=3 N0=3 kernelpagesize_kB=4
7f0000000000 prefer (many)=static:0-1,3 anon=1 N0=1 kernelpagesize_kB=4
7f0000010000 default
7f0000020000 weighted interleave:0
7ffe3ac41000 bind:0 stack anon=3 dirty=3 active=1 N0=3 kernelpagesize_kB=4
"""


def area(start):
    return Area(start=start, end=start + 4096, prot=3, backing=Backing.ANON)


def test_usual_ones_are_not_kept():
    assert policies.parse(USUAL) is policies.NONE
    assert policies.encode(policies.NONE) == {}
    assert policies.decode(None) == policies.NONE
    assert policies.plan(policies.NONE, [area(0x7F0000000000)]) == []


def test_round_trip():
    found = policies.parse(BOUND)
    assert found == Policies(
        own="bind:0",
        areas=(
            (0x7F0000000000, "prefer (many)=static:0-1,3"),
            (0x7F0000010000, "default"),
            (0x7F0000020000, "weighted interleave:0"),
        ),
    )
    assert policies.decode(policies.encode(found)) == found


def test_plan():
    found = policies.parse(BOUND)
    own, first, second = policies.plan(found, [area(0x7F0000000000), area(0x7F0000010000)])
    assert (own.call, own.args[0], own.args[2]) == ("set_mempolicy", 2, 1025)
    assert own.args[1].content[:8] == b"\x01" + bytes(7)
    assert (first.call, first.args[:3]) == ("mbind", (0x7F0000000000, 4096, 5 | 1 << 15))
    assert first.args[3].content[:8] == b"\x0b" + bytes(7)
    assert second.args == (0x7F0000010000, 4096, 0, 0, 0, 0)


@pytest.mark.parametrize("text", ["", "bound:0", "bind:0 ", "bind=odd:0", "bind:x"])
def test_what_is_no_policy(text):
    with pytest.raises((ValueError, KeyError)):
        policies.decode({"own": text, "areas": []})

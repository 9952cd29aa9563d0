# SPDX-License-Identifier: Apache-2.0
"""Which tasks share tables, by a kcmp(2) that is made up."""

import pytest

from torpor.engine.dump import sharing
from torpor.engine.errors import Findings


@pytest.fixture
def objects(monkeypatch):
    """Kind of kcmp → pid → the object that it has (a number, ordered as the kernel would)."""
    made = {}

    def kcmp(one, other, kind, *_):
        a, b = (made.get(kind, {}).get(pid, pid) for pid in (one, other))
        return 0 if a == b else 1 if a < b else 2

    monkeypatch.setattr(sharing, "kcmp", kcmp)
    return made


def test_nobody_shares(objects):
    assert sharing.find([30, 10, 20]) == {"files_of": {}, "fs_of": {}}
    assert sharing.find([30]) == {"files_of": {}, "fs_of": {}}


def test_the_first_of_each_group_has_it(objects):
    objects[sharing.KCMP_FILES] = {30: 7, 20: 7, 40: 5, 10: 5}
    objects[sharing.KCMP_FS] = {10: 1, 40: 1}
    found = sharing.find([30, 10, 20, 40, 50])
    assert found == {"files_of": {20: 30, 40: 10}, "fs_of": {40: 10}}


def test_one_memory_is_refused(objects):
    objects[sharing.KCMP_VM] = {10: 1, 20: 1}
    with pytest.raises(Findings, match="whole memory") as error:
        sharing.find([10, 20])
    assert error.value.items[0].subject == "pid 20"

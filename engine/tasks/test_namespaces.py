# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.tasks import namespaces

OURS = {name: f"{name.partition('_')[0]}:[1]" for name in namespaces.KINDS}


def test_the_same_namespaces_are_fine():
    assert namespaces.check_root("pid 7", OURS, OURS) == []
    assert namespaces.check_task("pid 8", OURS, OURS) == []


@pytest.mark.parametrize("kind", sorted({*namespaces.KINDS} - {"time"}))
def test_another_one_is_refused_by_name(kind):
    other = OURS | {kind: f"{kind}:[2]"}
    (refused,) = namespaces.check_root("pid 7", other, OURS)
    assert f"{namespaces.KINDS[kind]} namespace {kind}:[2]" in str(refused)
    assert "nsenter" in refused.remedy
    (refused,) = namespaces.check_task("pid 8", other, OURS)
    assert "below the root" in str(refused)


def test_a_time_namespace_of_all_of_a_tree_is_fine():
    own = OURS | {"time": "time:[2]", "time_for_children": "time:[2]"}
    assert namespaces.check_root("pid 7", own, OURS) == []
    assert namespaces.check_task("pid 8", own, own) == []
    for_children = OURS | {"time_for_children": "time:[2]"}
    (refused,) = namespaces.check_root("pid 7", for_children, OURS)
    assert "time namespace time:[2]" in str(refused)
    assert namespaces.check_task("pid 8", OURS, own)


def test_a_kernel_without_a_kind():
    less = {name: text for name, text in OURS.items() if not name.startswith("time")}
    assert namespaces.check_root("pid 7", less, OURS) == []

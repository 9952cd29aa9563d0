# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

from torpor.engine.dump.owners import owners


def status(pid, group):
    return SimpleNamespace(ns_tgid=(1000 + pid, pid), ns_pgid=(1000 + group, group))


def test_tasks_threads_and_groups():
    found = owners([(status(41, 41), {1041: 41, 1050: 50}), (status(42, 60), {})])
    assert found == {1041: 41, 1050: 50, 1042: 42, 1060: 60}


def test_the_group_of_the_shell_is_not_ours():
    assert 1030 not in owners([(status(41, 30), {}), (status(42, 30), {})])

# SPDX-License-Identifier: Apache-2.0
import errno
import os

import pytest

from torpor.engine.cli import check
from torpor.engine.errors import Bug, Denied
from torpor.engine.inspect.lines import plain
from torpor.engine.kernel import features, rights
from torpor.engine.kernel.features import Feature, probe_all


def failing():
    raise OSError(errno.EPERM, "x")


def refusing():
    raise Denied("may not", cause="because")


def feature(rung, probe, **more):
    return Feature(name=f"f{rung}", use="u", rung=rung, probe=probe, remedy="do it", **more)


def test_a_probe_that_fails_says_why():
    found = probe_all([feature(3, lambda: None), feature(3, failing), feature(3, refusing)])
    assert [f.works for f in found] == [True, False, False]
    assert found[1].cause == "EPERM (Operation not permitted)"
    assert found[2].cause == "may not: because"
    assert [f.remedy for f in found] == ["", "do it", "do it"]


def test_a_child_gives_back_what_it_found_or_met():
    assert rights.in_child(lambda: [os.getppid(), "x"]) == [os.getpid(), "x"]
    with pytest.raises(OSError, match="not permitted") as met:
        rights.in_child(failing)
    assert met.value.errno == errno.EPERM
    with pytest.raises(Bug):
        rights.in_child(lambda: 1 // 0)


@pytest.mark.root
def test_rungs_are_tried_with_their_rights_only():
    answer = rights.in_child(
        lambda: [os.getuid(), sorted(rights.effective())],
        lambda: rights.keep_only({"SYS_PTRACE"}),
    )
    assert answer == [rights.NOBODY, ["SYS_PTRACE"]]


def test_probes_leave_no_process_and_no_descriptor_behind():
    fds = os.listdir("/proc/self/fd")
    found = probe_all()
    assert {f.rung for f in found} == {1, 2, 3}
    assert [f.name for f in found if f.rung == 1 and f.needed and not f.works] == []
    assert os.listdir("/proc/self/fd") == fds
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_ladder_ends_where_something_needed_is_missing():
    found = probe_all(
        [feature(1, lambda: None), feature(2, failing, needed=False), feature(3, failing)]
    )
    assert [check.whole(found, rung) for rung in (1, 2, 3)] == [True, True, False]
    told = "\n".join(plain(one) for one in check.lines(found))
    assert "up to rung 2." in told
    assert told.count("remedy: do it") == 2
    assert "EPERM (Operation not permitted) (torpor works without)" in told


def test_every_feature_names_its_use_and_remedy():
    assert all(f.use and f.remedy for f in features.FEATURES)
    assert len({f.name for f in features.FEATURES}) == len(features.FEATURES)

# SPDX-License-Identifier: Apache-2.0
"""A short run of every fuzz target; `make fuzz` is the long one."""

import tempfile

import pytest

from tests.fuzz import corpus, targets
from tests.fuzz.run import SEED, feed

pytestmark = [pytest.mark.faults, pytest.mark.root]

INPUTS, WORKLOADS = 12_000, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def every_target(folder):
    return targets.all_targets(folder, list(corpus.dump(folder, corpus.cases(WORKLOADS))))


def test_shares_are_a_whole(every_target):
    assert sum(target.share for target in every_target) == 1000


def test_only_errors_with_a_remedy_come_out(every_target, folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for target in every_target:
        outcome = feed(target, INPUTS * target.share // 1000, SEED, folder)
        assert not outcome.failures, outcome.traces or outcome.failures
        assert outcome.refused, target.name
        assert outcome.refused < outcome.inputs or "wire" in target.name, target.name

# SPDX-License-Identifier: Apache-2.0
"""Rounds inside of images: how they are found, and numbers that lead elsewhere."""

import pytest

from torpor.engine.errors import BadImage
from torpor.engine.images import rounds


def facts(number):
    return {"dump": {rounds.LAST: number}}


def test_the_images_lead_to_the_last_round_and_each_to_the_one_before(tmp_path):
    for number in (1, 2):
        (tmp_path / rounds.round_name(number)).mkdir()
    last = rounds.before(tmp_path, facts(2))
    assert last == tmp_path / "precopy-2"
    assert rounds.before(last, facts(1)) == tmp_path / "precopy-1"
    assert rounds.before(last.with_name("precopy-1"), facts(0)) is None
    assert rounds.before(tmp_path, {}) is None


@pytest.mark.parametrize("number", ["../1", -1, 1.0, rounds.MAX_ROUNDS + 1, [1], "1"])
def test_what_is_no_number(tmp_path, number):
    with pytest.raises(BadImage, match="number"):
        rounds.before(tmp_path, facts(number))


def test_a_round_that_is_none(tmp_path):
    with pytest.raises(BadImage, match="missing"):
        rounds.before(tmp_path, facts(1))
    (tmp_path / "precopy-1").write_text("")
    with pytest.raises(BadImage, match="missing"):
        rounds.before(tmp_path, facts(1))
    (tmp_path / "precopy-1").unlink()
    (tmp_path / "precopy-1").symlink_to("/")
    with pytest.raises(BadImage, match="link"):
        rounds.before(tmp_path, facts(1))

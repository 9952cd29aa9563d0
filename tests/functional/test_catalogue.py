# SPDX-License-Identifier: Apache-2.0
"""Every state of the catalogue with our engine: left alone, left running, moved twice, refused."""

import re

import pytest

from tests.functional.catalogue.every import CASES
from torpor.engine.errors import Error
from torpor.engine.options import After

pytestmark = [pytest.mark.functional, pytest.mark.root]
TAKEN = [case for case in CASES if not case.refused]
REFUSED = [case for case in CASES if case.refused]


def name(case):
    return case.name


def begin(start, case):
    live = start(case.program, *case.arguments, user=case.user)
    text = live.await_file("ready")
    if text.startswith("lacking: "):
        pytest.skip(f"this machine lacks {text.removeprefix('lacking: ')}")
    if case.busy:
        live.mark()
    else:
        live.settle()
    return live


def look(live, case):
    """The description, without what this case says must change."""
    if case.busy:
        return {}
    return live.look(tuple(case.changes))


def compare(live, case, before):
    if not case.busy:
        live.same_as(before, tuple(case.changes))


def test_names_are_unique():
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_is_content_when_left_alone(start, case):
    assert begin(start, case).verdict() == "ok"


@pytest.mark.parametrize("case", TAKEN, ids=name)
def test_runs_on_after_a_dump(start, case):
    live = begin(start, case)
    before = look(live, case)
    live.dump("first", After.CONTINUE, words=case.options)
    compare(live, case, before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("case", TAKEN, ids=name)
def test_twice_and_back(start, case):
    live = begin(start, case)
    before = look(live, case)
    for images in ("first", "second"):
        live.dump(images, words=case.options)
        live.restore(images, words=case.restore_options)
        compare(live, case, before)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("case", REFUSED, ids=name)
def test_is_refused_and_unharmed(start, case):
    live = begin(start, case)
    before = look(live, case)
    with pytest.raises(Error) as error:
        live.dump(words=case.options)
    assert re.search(case.refused, str(error.value)), str(error.value)
    live.unharmed()
    compare(live, case, before)
    assert live.verdict() == "ok"

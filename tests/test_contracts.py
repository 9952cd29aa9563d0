# SPDX-License-Identifier: Apache-2.0
"""What every kind of `engine/kinds.py` owes: limits with remedies, facts, tests, a row."""

import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

from tools import docs, support
from torpor.engine import kinds
from torpor.engine.images.proto import criu_pb2
from torpor.engine.kind import FileKind
from torpor.engine.kinds import FILE_KINDS

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("matches", "collect", "check", "encode", "decode", "plan", "late")
EACH = pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)


def module_of(kind):
    return inspect.getmodule(type(kind))


@EACH
def test_limits_say_what_and_what_to_do(kind):
    assert kind.limits
    assert tuple(kind.limits) == tuple(getattr(module_of(kind), "LIMITS", kind.limits))
    for limit in kind.limits:
        assert re.fullmatch(r"[a-z0-9_-]+", limit.case), limit
        assert limit.what.strip(), limit
        assert limit.remedy.strip(), limit
        for text in (limit.what, limit.remedy):  # clauses of a message, not sentences
            assert not text.endswith("."), text
            assert "\n" not in text


def test_a_case_is_one_thing():
    cases = {limit for kind in FILE_KINDS for limit in kind.limits}
    twice = [case for case, times in Counter(limit.case for limit in cases).items() if times > 1]
    assert not twice


@EACH
def test_both_sides_are_there(kind):
    assert not [side for side in SIDES if not callable(getattr(kind, side, None))]
    wanted = [inspect.signature(getattr(FileKind, side)).parameters for side in SIDES]
    found = [inspect.signature(getattr(type(kind), side)).parameters for side in SIDES]
    for side, ours, theirs in zip(SIDES, found, wanted, strict=True):
        assert [name.strip("_") for name in ours] == list(theirs), side


@EACH
def test_the_module_opens_with_its_facts(kind):
    text = module_of(kind).__doc__ or ""
    assert "Facts" in text


@EACH
def test_a_test_is_beside_the_module(kind):
    assert docs.unit_test(kind).is_file()


@EACH
def test_a_row_is_in_the_support_matrix(kind):
    assert f"\n| {docs.title(kind)} | " in docs.MATRIX_PAGE.read_text()
    has = support.KINDS[kind.name]
    assert has.is_taken == bool(kind.types), "what has no image type is refused"


@EACH
def test_a_live_workload_holds_it(kind):
    if kind.name == "terminal":  # only a container's is taken: test_terminal.py
        return
    live = [path for path in support.KINDS[kind.name].tests if path.startswith("tests/functional/")]
    assert live


@EACH
def test_image_types_are_criu_s(kind):
    assert set(kind.types) <= set(criu_pb2.fd_types.keys())


def test_names_are_unique_and_the_matrix_has_no_others():
    names = [kind.name for kind in FILE_KINDS]
    assert len(set(names)) == len(names)
    assert set(support.KINDS) == set(names)


def test_every_kind_is_in_the_table():
    """A module with a KIND that nobody listed would never be asked."""
    listed = {module_of(kind).__name__ for kind in FILE_KINDS}
    declared = {
        f"torpor.engine.{path.parent.name}.{path.stem}"
        for folder in ("files", "sockets")
        for path in (ROOT / "engine" / folder).glob("*.py")
        if re.search(r"^KIND\b", path.read_text(), flags=re.MULTILINE)
    }
    assert declared == listed


def test_the_table_is_explicit():
    source = Path(kinds.__file__).read_text()
    assert source.count(".KIND,") == len(FILE_KINDS)

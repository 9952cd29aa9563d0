# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.criu import check, features
from torpor.engine.criu.entry import main
from torpor.engine.criu.features import CRIU_FEATURES, Category, CriuFeature
from torpor.engine.errors import Unavailable
from torpor.engine.kernel.features import FEATURES


@pytest.mark.parametrize("one", CRIU_FEATURES, ids=lambda one: one.name)
def test_each_says_what_it_is_for_or_what_is_lacking(one):
    assert bool(one.use) is not bool(one.lacking)
    assert one.lacking or one.probe or one.torpor
    assert not one.torpor or one.torpor in {f.name for f in FEATURES}


def absent() -> None:
    raise Unavailable("not here", cause="an old kernel")


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (CriuFeature(name="x", lacking="not yet"), "not yet"),
        (CriuFeature(name="x", probe=absent), "an old kernel"),
        (CriuFeature(name="x", probe=lambda: None), ""),
    ],
)
def test_why_one_is_missing(one, why):
    assert features.missing(one) == why


def test_one_by_name(capsys):
    assert main(["check", "--feature", "ns_pid"]) == 0
    assert capsys.readouterr().out == "ns_pid is supported\n"
    assert main(["check", "--feature", "userns"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert features.BY_NAME["userns"].lacking in told.err


@pytest.mark.parametrize(
    ("needed", "more", "said"), [(0, 0, check.GOOD), (0, 2, check.PARTLY), (1, 0, check.BAD)]
)
def test_what_is_said_of_all(needed, more, said, monkeypatch, capsys):
    monkeypatch.setattr(check, "_needed", lambda: needed)
    monkeypatch.setattr(check, "_more", lambda _: more)
    assert main(["check", "--all"]) == (1 if needed or more else 0)
    assert capsys.readouterr().out == said


def test_all_is_extra_and_experimental(monkeypatch):
    told = []
    monkeypatch.setattr(check, "_tell", lambda category: told.append(category) or 0)
    monkeypatch.setattr(check, "_needed", lambda: 0)
    for words in ([], ["--extra"], ["--experimental"], ["--all"]):
        main(["check", *words])
    more, most = Category.EXTRA, Category.EXPERIMENTAL
    assert told == [more, most, more, most]

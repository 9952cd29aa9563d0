# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.criu import cpuinfo
from torpor.engine.criu.entry import main
from torpor.engine.errors import BadImage, Refused


def test_this_processor_is_like_itself(tmp_path):
    assert main(["cpuinfo", "dump", "-D", str(tmp_path)]) == 0
    assert main(["cpuinfo", "check", "-D", str(tmp_path)]) == 0
    assert len(cpuinfo.collect().capability) == cpuinfo.WORD_COUNT


def test_without_the_file_nothing_can_be_compared(tmp_path):
    with pytest.raises(BadImage):
        cpuinfo.check(tmp_path, "cpu")
    cpuinfo.check(tmp_path, "none")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", {"cpu", "ins", "fpu"}),
        ("all,^cpu", {"ins", "fpu"}),
        ("none", set()),
        ("^ins", {"fpu"}),
        ("fpu", {"fpu"}),
    ],
)
def test_words_of_cpu_cap(value, expected):
    assert cpuinfo.chosen(value) == expected


def test_what_is_missing_is_told():
    then, now = cpuinfo.collect(), cpuinfo.collect()
    now.capability[9] = 0
    now.xfeatures_mask = 3
    then.capability[9] |= 1
    then.xfeatures_mask |= 4
    assert [text.split()[0] for text in cpuinfo.differences(then, now, frozenset({"cpu"}))] == [
        "word"
    ]
    assert cpuinfo.differences(now, then, frozenset({"ins", "fpu"})) == []
    assert len(cpuinfo.differences(then, now, frozenset({"ins", "fpu"}))) == 2


def test_another_processor_is_refused(tmp_path, monkeypatch):
    cpuinfo.write(tmp_path)
    poor = cpuinfo.collect()
    poor.capability[0] = 0
    monkeypatch.setattr(cpuinfo, "collect", lambda: poor)
    with pytest.raises(Refused, match="processor differs"):
        cpuinfo.check(tmp_path, "ins")

# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.criu.cgroupprops import settings
from torpor.engine.criu.parse import parse
from torpor.engine.errors import Error, Refused

ONE = '"pids":\n - "strategy": "replace"\n - "properties": ["pids.current"]'


def asked(text):
    return settings(parse(["dump", "-t", "1", "--cgroup-props", text]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        (ONE, {"pids": ("pids.current",)}),
        (ONE.replace("replace", "merge"), {"pids": ("pids.max", "pids.current")}),
        (ONE.replace(": ", ":"), {"pids": ("pids.current",)}),
        (ONE.replace('["pids.current"]', "[]"), {"pids": ()}),
        (ONE.replace('["pids.current"]', '[ "a" , "b" ]'), {"pids": ("a", "b")}),
        (f"{ONE}\n{ONE.replace('pids', 'odd')}\n",
         {"pids": ("pids.current",), "odd": ("odd.current",)}),
        (f"{ONE}\n{ONE.replace('replace', 'merge').replace('pids.current', 'b')}",
         {"pids": ("pids.current", "b")}),
    ],
)  # fmt: skip
def test_descriptions(text, found):
    assert asked(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "x", "{}", f" {ONE}", f"{ONE}\n\n{ONE}", f"{ONE}\nmore", ONE.replace("\n - ", "\n  - "),
        ONE.replace('"strategy"', "strategy"), ONE.replace("replace", "odd"), ONE.rstrip("]"),
        ONE.replace('"pids"', '""'), '"pids":\n', '"pids":\n - "properties": ["x"]',
    ],
)  # fmt: skip
def test_what_is_no_description(text):
    with pytest.raises(Refused, match="no description"):
        asked(text)


def test_a_description_in_a_file(tmp_path):
    path = tmp_path / "description"
    line = parse(["dump", "--cgroup-props-file", str(path)])
    with pytest.raises(Error, match="cannot read"):
        settings(line)
    path.touch()
    with pytest.raises(Refused, match="holds nothing"):
        settings(line)
    path.write_text(ONE)
    assert settings(line) == {"pids": ("pids.current",)}

# SPDX-License-Identifier: Apache-2.0
"""Facts beside the images: a round trip, and what somebody else may have written there."""

import json

import pytest

from torpor.engine.errors import BadImage
from torpor.plugin.agent import podfacts
from torpor.plugin.agent.podfacts import FACTS, Facts


def test_round_trip(tmp_path):
    facts = Facts(
        cpu_flags=("avx", "sse"), data_links={"app": {"/etc/x": "..2025"}}, pod_ips=("10.0.0.1",)
    )
    podfacts.write(facts, tmp_path)
    assert podfacts.read(tmp_path) == facts


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"cpuFlags": [], "dataLinks": []}),
        json.dumps({"cpuFlags": [], "dataLinks": {"app": {"/etc/x": "../../etc"}}}),
        json.dumps({"cpuFlags": [], "dataLinks": {"app": {"/etc/x": ".."}}}),
    ],
)
def test_what_is_refused(tmp_path, text):
    (tmp_path / FACTS).write_text(text)
    with pytest.raises(BadImage, match="facts"):
        podfacts.read(tmp_path)


def test_none_there(tmp_path):
    with pytest.raises(BadImage, match="read"):
        podfacts.read(tmp_path)

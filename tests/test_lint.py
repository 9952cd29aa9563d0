# SPDX-License-Identifier: Apache-2.0
"""The linters, one test each, so that `make test` tells what `make lint` would."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "tools" / "lint.py"
SPEC = importlib.util.spec_from_file_location("torpor_lint", SOURCE)
LINT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(LINT)


@pytest.mark.parametrize("name", LINT.CHECKS)
def test_check(name):
    problem = LINT.CHECKS[name]()
    assert not problem, problem


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"see {LINT.ROOT}/tools", True),
        (f"in {Path.home()}/.pyenv/x", True),
        ("/usr/lib/x", False),
        ("the network/work split", False),
    ],
)
def test_traces_of_a_machine(text, wanted):
    assert bool(LINT.TRACES.search(text)) is wanted

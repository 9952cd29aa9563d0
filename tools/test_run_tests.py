# SPDX-License-Identifier: Apache-2.0
"""The counts that CI reads, and which skips it lets pass."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("run_tests", Path(__file__).with_name("run_tests.py"))
RUN = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(RUN)


def case(name, inside=""):
    return f'<testcase classname="c" name="{name}">{inside}</testcase>'


def read(tmp_path, *cases):
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return RUN.read(report)


def test_counts(tmp_path):
    outcome = read(
        tmp_path,
        case("fine"),
        case("wrong", "<failure/>"),
        case("broken", "<error/>"),
        case("known", '<skipped message="needs a Go compiler"/>'),
    )
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 2, 1)
    assert outcome.odd_skips == []


def test_a_skip_that_nobody_expects(tmp_path):
    outcome = read(tmp_path, case("x", '<skipped message="the kernel is not right"/>'))
    assert outcome.odd_skips == ["c::x: the kernel is not right"]


def test_no_report_is_a_failure(tmp_path):
    assert RUN.read(tmp_path / "none").failed == 1


@pytest.mark.parametrize("uid", [0, 1000])
def test_root_is_no_excuse_for_root(monkeypatch, uid):
    monkeypatch.setattr(RUN.os, "getuid", lambda: uid)
    assert RUN.expected("mounting needs root") is (uid != 0)
    assert RUN.expected("needs root: pids are chosen at restore") is (uid != 0)
    assert RUN.expected("no v1 freezer that we may write")


def test_rings():
    assert RUN.chosen("unit") == ["unit"]
    with pytest.raises(SystemExit):
        RUN.chosen("nonsense")


@pytest.mark.parametrize(("value", "wanted"), [("0", False), ("1", True)])
def test_the_switch_of_the_cluster(monkeypatch, value, wanted):
    monkeypatch.setenv("TORPOR_E2E", value)
    assert ("e2e" in RUN.chosen("all")) is wanted

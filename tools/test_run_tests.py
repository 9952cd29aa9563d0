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


def tried(monkeypatch, tmp_path, ring, *reports):
    """What a ring gives whose runs leave these reports."""
    asked = []

    def run(command, **_):
        asked.append("--lf" in command)
        path = next(w for w in command if w.startswith("--junitxml=")).partition("=")[2]
        cases = reports[len(asked) - 1]
        Path(path).write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        return RUN.subprocess.CompletedProcess(command, int("<failure/>" in "".join(cases)))

    monkeypatch.setattr(RUN, "BUILD", tmp_path)
    monkeypatch.setattr(RUN, "prepare", lambda _: None)
    monkeypatch.setattr(RUN.subprocess, "run", run)
    outcome, status = RUN.run(ring, [])
    return outcome.passed, outcome.failed, status, asked


GOOD, BAD = case("good"), case("bad", "<failure/>")


def test_a_few_failures_are_tried_again(monkeypatch, tmp_path, capsys):
    assert tried(monkeypatch, tmp_path, "functional", [GOOD, BAD], [GOOD]) == (
        2, 0, 0, [False, True],
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "failed, tried again: c::bad" in told
    assert "1 of them passed then" in told


def test_what_fails_twice_has_failed(monkeypatch, tmp_path):
    assert tried(monkeypatch, tmp_path, "e2e", [GOOD, BAD], [BAD])[:3] == (1, 1, 1)


def test_a_second_try_of_nothing_is_no_success(monkeypatch, tmp_path):
    assert tried(monkeypatch, tmp_path, "compat", [GOOD, BAD], [])[:3] == (1, 1, 1)


def test_unit_tests_and_many_failures_are_not_tried_again(monkeypatch, tmp_path):
    assert tried(monkeypatch, tmp_path, "unit", [GOOD, BAD]) == (1, 1, 1, [False])
    assert tried(monkeypatch, tmp_path, "faults", [GOOD] + [BAD] * 4)[3] == [False]


@pytest.mark.parametrize(("lanes", "beside"), [("2", True), ("1", False)])
def test_lanes(monkeypatch, lanes, beside):
    """Every ring once; the cluster's when all others have ended."""
    begun = []

    def run(name, _, *, aside=False):
        begun.append((name, aside))
        return RUN.Outcome(passed=1), 0

    monkeypatch.setattr(RUN, "run", run)
    monkeypatch.setenv("TORPOR_LANES", lanes)
    assert len(list(RUN.run_all(list(RUN.RINGS), []))) == len(RUN.RINGS)
    assert sorted(begun) == sorted((name, beside and name != "e2e") for name in RUN.RINGS)
    assert begun[-1][0] == "e2e"


def test_progress():
    assert RUN.progress("") == "0 % done, 0 failed"
    assert RUN.progress("..Fs. [ 40%]\n..E.. [ 80%]\n..") == "80 % done, 2 failed"

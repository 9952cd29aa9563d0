# SPDX-License-Identifier: Apache-2.0
import io
import logging
import re

import pytest

from torpor.engine import logs

CRIU_LINE = re.compile(r"\(\d\d\.\d{6}\) (Error \(\w+:\d+\): |Warn  \(\w+:\d+\): )?.+")


@pytest.fixture(autouse=True)
def _quiet():
    yield
    logs.stop()


def write(criu, verbosity, *events):
    stream = io.StringIO()
    logs.start(stream, verbosity=verbosity, criu=criu)
    for level, text in events:
        logs.logger("torpor.engine.dump.pipeline").log(level, text)
    return stream.getvalue().splitlines()


EVENTS = (
    (logging.DEBUG, "task 41, fd 3 -> /tmp/Error.log"),
    (logging.INFO, "task 41/7: 3 threads seized in 2.1 ms"),
    (logging.WARNING, "KernelError was expected\nand came"),
    (logging.ERROR, "task 41: cannot be dumped\nremedy: close it"),
)


def test_only_errors_have_the_word_that_runtimes_scrape():
    lines = write(True, logs.DEBUG, *EVENTS)
    assert len(lines) == 4
    assert all(CRIU_LINE.fullmatch(line) for line in lines)
    assert [("Error" in line) for line in lines] == [False, False, False, True]
    assert re.fullmatch(
        r"\(00\.\d{6}\) Error \(test_logs:\d+\): task 41: cannot be dumped \| remedy: close it",
        lines[3],
    )


def test_an_exception_with_its_trace_stays_one_line():
    stream = io.StringIO()
    logs.start(stream, criu=True)
    try:
        raise ValueError("odd")
    except ValueError:
        logs.logger("torpor.engine").exception("bug in the engine")
    assert len(stream.getvalue().splitlines()) == 1
    assert "ValueError: odd" in stream.getvalue()


@pytest.mark.parametrize(("verbosity", "count"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_verbosity_is_criu_s(verbosity, count):
    assert len(write(False, verbosity, *EVENTS)) == count


def test_names_that_are_not_utf8_do_not_break_the_log():
    assert write(False, 3, (logging.INFO, "fd 3 -> /tmp/\udcff")) == ["fd 3 -> /tmp/\\udcff"]


def test_plain_lines_are_marked():
    assert write(False, 2, *EVENTS) == [
        "warning: KernelError was expected | and came",
        "error: task 41: cannot be dumped | remedy: close it",
    ]

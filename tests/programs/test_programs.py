# SPDX-License-Identifier: Apache-2.0
"""Each program of the tables, moved twice."""

from pathlib import Path

import pytest

from tests.programs import desktop, jobs, languages, servers, terminals
from tests.programs.stage import play

pytestmark = [pytest.mark.functional, pytest.mark.root, pytest.mark.programs]
PROGRAMS = {
    **jobs.PROGRAMS,
    **languages.PROGRAMS,
    **servers.PROGRAMS,
    **terminals.PROGRAMS,
    **desktop.PROGRAMS,
}


@pytest.fixture(autouse=True)
def no_segments_left():
    """A server that is killed leaves its shared memory, as it would anywhere."""

    def segments():
        return set(Path("/dev/shm").glob("PostgreSQL.*"))

    before = segments()
    yield
    for path in segments() - before:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", PROGRAMS)
def test_moves_twice(tmp_path, name):
    result = play(PROGRAMS[name], tmp_path, name)
    assert result.verdict == "works"

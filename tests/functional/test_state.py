# SPDX-License-Identifier: Apache-2.0
"""A terminal that belongs to nobody in the tree is refused, and the task runs on."""

import os

import pytest

from tests.functional.state_round import Round
from torpor.engine.errors import Findings

pytestmark = [pytest.mark.functional, pytest.mark.root]


def test_a_terminal_of_the_user_is_refused_and_the_task_runs_on(tmp_path):
    master, slave = os.openpty()
    one = Round(tmp_path, "sleep", "60", python=False, stdin=slave)
    try:
        with pytest.raises(Findings, match="terminal") as error:
            one.dump()
        assert "fd 0" in error.value.subject
        assert "--shell-job" in error.value.remedy
        assert os.waitpid(one.pid, os.WNOHANG) == (0, 0)
    finally:
        one.end()
        os.close(master)
        os.close(slave)

# SPDX-License-Identifier: Apache-2.0
"""A main thread that has ended before others: CRIU refuses the task, and our images of it."""

import pytest

from tests.compat.test_catalogue import criu_dump, criu_restore
from tests.functional.conftest import start  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.root, pytest.mark.compat]


def test_criu_dumps_none(criu_root, start):  # noqa: F811
    live = start("tasks_main_ended", "child")
    live.await_ready()
    with pytest.raises(AssertionError, match="Zombies with threads are not supported"):
        criu_dump(criu_root, live, ())
    live.unharmed()
    assert live.verdict() == "ok"


def test_criu_restores_none(criu_root, start):  # noqa: F811
    """It would otherwise make a main thread that runs on from nowhere."""
    live = start("tasks_main_ended", "child")
    live.await_ready()
    live.dump()
    with pytest.raises(AssertionError, match="Unknown task state 7"):
        criu_restore(criu_root, live, ())
    live.reap(live.pids)
    live.restore()
    assert live.verdict() == "ok"

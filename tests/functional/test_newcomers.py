# SPDX-License-Identifier: Apache-2.0
"""Tasks that are forked after a dump has looked at the tree are looked at once they are stopped."""

import pytest

from tests.functional.describe import tree
from tests.functional.harness import Live
from torpor.engine.dump.freeze import list_tasks
from torpor.engine.dump.preflight import check_newcomers, preflight
from torpor.engine.errors import Findings
from torpor.engine.options import DumpOptions

pytestmark = [pytest.mark.functional, pytest.mark.root]
SCRIPT = (
    "{ until [ -e go ]; do sleep 0.02; done; "
    "unshare --uts sh -c 'touch ready; exec sleep 1000'; } & "
    "touch up; wait"
)


def test_a_namespace_of_a_newcomer_is_refused(tmp_path):
    live = Live(tmp_path, ["sh", "-c", f"cd {tmp_path}; {SCRIPT}"])
    try:
        live.await_file("up")
        options = DumpOptions(pid=live.pid, images_dir=tmp_path / "images")
        seen = preflight(options, may_read=True)
        assert live.pid in seen
        (tmp_path / "go").touch()
        live.await_file("ready")
        live.pids |= set(tree(live.pid))
        tasks = list_tasks(live.pid)
        with pytest.raises(Findings, match="namespace of its own"):
            check_newcomers(options, tasks, frozenset({live.pid}), may_read=True)
        check_newcomers(options, tasks, frozenset(task.pid for task in tasks), may_read=True)
    finally:
        live.end()


def test_a_task_that_is_gone_is_passed_over(tmp_path):
    live = Live(tmp_path, ["sh", "-c", f"touch {tmp_path}/ready; while :; do sleep 0.001; done"])
    try:
        live.await_file("ready")
        options = DumpOptions(pid=live.pid, images_dir=tmp_path / "images")
        for _ in range(200):
            preflight(options, may_read=True)
    finally:
        live.end()

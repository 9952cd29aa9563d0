# SPDX-License-Identifier: Apache-2.0
"""Chains of ours with Debian's criu: it restores them.

It makes none here: its pre-dump needs soft-dirty, which this kernel has not; and its dedup fails
when a task has no pagemap in the parent.
"""

import pytest

from tests.compat.test_catalogue import criu_restore
from tests.functional.conftest import start  # noqa: F401 (a fixture)
from tests.functional.test_incremental import grow, restored
from torpor.engine.options import MemoryWay

pytestmark = [pytest.mark.root, pytest.mark.compat]


def test_criu_restores_a_chain(criu_root, start):  # noqa: F811
    live = start("cli_memory")
    grow(live)
    live.reap(live.pids)
    restored(live, program=criu_root.criu())


def test_criu_restores_what_was_copied_in_rounds(criu_root, start):  # noqa: F811
    """The rounds' images are the parent of those of the stop."""
    live = start("memory_restless", "5", "200")
    live.await_file("ready")
    live.mark()
    images = live.dump(memory=MemoryWay.PRECOPY, replace=False)
    assert (images / "parent").is_symlink()
    criu_restore(criu_root, live, ())
    assert live.verdict() == "ok"

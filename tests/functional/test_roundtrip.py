# SPDX-License-Identifier: Apache-2.0
"""Trees that are never at rest: dumped at whatever they happen to do, several times."""

import pytest

from tests.functional.catalogue.tasks import BLOCKED
from tests.functional.conftest import WORKLOADS
from torpor.engine.options import After

pytestmark = [pytest.mark.functional, pytest.mark.root]

NEVER_AT_REST = ("core_busy", "core_threaded", "core_shared")


def test_every_blocked_call_is_listed():
    source = (WORKLOADS / "core_blocked.c").read_text()
    assert [f'{{ "{call}"' in source for call in BLOCKED] == [True] * source.count('\t{ "')


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("after", [After.STOP, After.CONTINUE], ids=lambda after: after.value)
@pytest.mark.parametrize("name", NEVER_AT_REST)
def test_busy(start, name, after, attempt):
    live = start(name)
    live.await_file("ready")
    for number in range(2):
        live.dump(f"images-{number}", after)
        if after is After.STOP:
            live.restore(f"images-{number}")
        live.unharmed()
    assert live.verdict() == "ok"

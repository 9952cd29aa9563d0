# SPDX-License-Identifier: Apache-2.0
"""A dump onto a file system that is full or read-only: it says so, and the workload runs on."""

import errno
import subprocess

import pytest

from tests.functional.conftest import start  # noqa: F401 (a fixture)
from torpor.engine.errors import Error
from torpor.engine.options import After

pytestmark = [pytest.mark.faults, pytest.mark.root]


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of a size; a dump of core_memory takes about 2 MiB."""
    place = tmp_path / "disk"

    def mount(options):
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "torpor-test", place]
        subprocess.run(command, check=True)
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("after", list(After), ids=lambda after: after.value)
@pytest.mark.parametrize(
    ("options", "number"),
    [("size=16k", errno.ENOSPC), ("size=256k", errno.ENOSPC), ("ro", errno.EROFS)],
)
def test_refused_and_unharmed(start, disk, options, number, after):  # noqa: F811
    live = start("core_memory")
    live.await_ready()
    before = live.look()
    place = disk(options)
    with pytest.raises(Error) as caught:
        live.dump("disk/images", after)
    error = caught.value
    assert error.cr_errno == number, error
    assert error.subject, error
    assert error.remedy, error
    live.same_as(before)
    live.unharmed()
    assert not list(place.iterdir()), "nothing is left of it"
    assert live.verdict() == "ok"

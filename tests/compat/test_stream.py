# SPDX-License-Identifier: Apache-2.0
"""`--stream`: images of either make through a streamer, to either make."""

import os

import pytest

from tests.compat.flavours import Driver
from tests.compat.streamer import Streamer
from tests.compat.test_flavours import LOCK, OURS
from tests.functional.catalogue.every import CASES
from tests.functional.conftest import start  # noqa: F401 (a fixture)
from tests.functional.test_catalogue import begin

pytestmark = [pytest.mark.root, pytest.mark.compat]
NAMES = ("core_tree", "files_gone plain", "memory_shared memfd_closed")
PICKED = [case for case in CASES if case.name in NAMES]


@pytest.fixture
def makes(criu_root):
    return {"ours": OURS, "theirs": criu_root.criu()}


@pytest.fixture
def drive(start):  # noqa: F811
    begun = []

    def go(case, program):
        driver = Driver(begin(start, case), program)
        driver.more = LOCK
        begun.append(driver)
        return driver

    yield go
    for driver in begun:
        driver.end()


def files(folder):
    return {path.name for path in folder.iterdir()} - {"dump.log", "restore.log"}


@pytest.mark.parametrize("case", PICKED, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("dump", "restore"),
    [("ours", "ours"), ("theirs", "ours"), ("ours", "theirs"), ("theirs", "theirs")],
)
def test_images_go_through_a_stream(makes, drive, case, dump, restore):
    driver = drive(case, makes[dump])
    driver.next()
    taking = Streamer(driver.images)
    words = ["--stream", *case.options]
    driver.run("dump", "-t", str(driver.live.pid), *words)
    images = taking.end()
    assert {"inventory.img", "pstree.img", "pages-1.img"} <= set(images)
    assert files(driver.images) == {"stats-dump"}
    driver.live.reap(driver.live.pids)
    driver.program = list(makes[restore])
    giving = Streamer(driver.images, images)
    driver.run("restore", "-d", "--stream", *case.restore_options)
    giving.end()
    assert files(driver.images) == {"stats-dump", "stats-restore"}
    driver.live.unharmed()
    assert driver.live.verdict() == "ok"


def test_a_streamer_that_ends_leaves_the_tree_as_it_was(drive):
    case = PICKED[0]
    driver = drive(case, OURS)
    driver.next()
    taking = Streamer(driver.images)
    taking.take = lambda _, fd: os.close(fd)
    driver.run("dump", "-t", str(driver.live.pid), "--stream", status=1)
    taking.end()
    driver.live.unharmed()
    assert not files(driver.images) - {"stats-dump"}
    assert driver.live.verdict() == "ok"

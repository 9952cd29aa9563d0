# SPDX-License-Identifier: Apache-2.0
"""Every state of the catalogue that Debian's criu takes too: by it alone, and crosswise."""

import subprocess

import pytest

from tests.functional.catalogue.every import CASES
from tests.functional.conftest import start  # noqa: F401 (a fixture)
from tests.functional.test_catalogue import begin

pytestmark = [pytest.mark.root, pytest.mark.compat]
COMMON = ("-v4", "--network-lock", "skip")
THEIRS = [case for case in CASES if not case.criu and not case.refused]
EXCHANGED = [case for case in THEIRS if not case.crosswise]


def name(case):
    return case.name


def criu(command, log):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120
    )
    told = log.read_text(errors="replace")[-3000:] if log.exists() else done.stderr
    assert done.returncode == 0, told


def criu_dump(root, live, words):
    images = live.folder / "images"
    images.mkdir()
    log = images / "dump.log"
    live.mark()
    arguments = ("dump", "-t", str(live.pid), "-D", str(images), "-o", log.name, *COMMON, *words)
    criu(root.criu(*arguments), log)
    live.reap(live.pids)


def criu_restore(root, live, words):
    images = live.folder / "images"
    log = images / "restore.log"
    arguments = ("restore", "-d", "-D", str(images), "-o", log.name, *COMMON, *words)
    criu(root.criu(*arguments), log)
    live.unharmed()


@pytest.mark.parametrize("case", THEIRS, ids=name)
def test_criu_alone(criu_root, start, case):  # noqa: F811
    live = begin(start, case)
    criu_dump(criu_root, live, case.options)
    criu_restore(criu_root, live, case.restore_options)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("case", EXCHANGED, ids=name)
def test_torpor_dumps_and_criu_restores(criu_root, start, case):  # noqa: F811
    live = begin(start, case)
    live.dump(words=case.options)
    criu_restore(criu_root, live, case.restore_options)
    assert live.verdict() == "ok"


@pytest.mark.parametrize("case", EXCHANGED, ids=name)
def test_criu_dumps_and_torpor_restores(criu_root, start, case):  # noqa: F811
    live = begin(start, case)
    criu_dump(criu_root, live, case.options)
    live.restore(words=case.restore_options)
    assert live.verdict() == "ok"

# SPDX-License-Identifier: Apache-2.0
"""Files that Debian's criu dumps come back by torpor; the workload checks itself.

The workload of counters is not among them: criu 4.2 loses EFD_SEMAPHORE.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.engine import api
from torpor.engine.options import RestoreOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))

import test_files_live as live

OPTIONS = ("--file-locks", "--force-irmap", "--leave-running", "-v4", "-o", "dump.log")


@pytest.mark.root
@pytest.mark.compat
@pytest.mark.parametrize("name", ["files_regular", "files_pipes"])
def test_criu_dumps_and_torpor_restores(criu_root, tmp_path, name):
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    process = live.start(name, tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    try:
        live.wait_for(tmp_path / "ready", f"{name} did not set up")
        command = criu_root.criu("dump", "-t", str(process.pid), "-D", str(images), *OPTIONS)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (images / "dump.log").read_text()[-2000:]
    finally:
        live.end(process)
    api.restore(RestoreOptions(images_dir=images))
    (tmp_path / "go").touch()
    text = live.wait_for(tmp_path / "result", f"{name} gave no result")
    assert text == "ok", text

# SPDX-License-Identifier: Apache-2.0
"""What torpor dumps comes back by Debian's criu; the workload checks itself.

The other workloads need what CRIU's format cannot say, or what CRIU does otherwise:
files_regular links an O_TMPFILE, files_anonymous has a semaphore and memfds that nobody maps.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.engine import api
from torpor.engine.options import DumpOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))

import test_files_live as live

OPTIONS = ("--restore-detached", "--file-locks", "-v4", "-o", "restore.log")


@pytest.mark.root
@pytest.mark.compat
@pytest.mark.parametrize("name", ["files_pipes", "core_identity"])
def test_torpor_dumps_and_criu_restores(criu_root, tmp_path, name):
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    process = live.start(name, tmp_path)
    images = tmp_path / "images"
    try:
        live.wait_for(tmp_path / "ready", f"{name} did not set up")
        api.dump((DumpOptions(pid=process.pid, images_dir=images),))
    finally:
        live.end(process)
    command = criu_root.criu("restore", "-D", str(images), *OPTIONS)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, (images / "restore.log").read_text(errors="replace")[-2000:]
    (tmp_path / "go").touch()
    text = live.wait_for(tmp_path / "result", f"{name} gave no result")
    os.waitpid(process.pid, 0)  # under its old pid, and ours as the subreaper
    assert text == "ok", text

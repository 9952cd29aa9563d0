# SPDX-License-Identifier: Apache-2.0
"""Workloads of sockets through the whole engine: dump, end, restore; they check themselves."""

import pytest

from torpor.engine import api
from torpor.engine.options import DumpOptions, RestoreOptions, TcpPolicy

from .test_files_live import end, place, start, wait_for

__all__ = ["place"]

pytestmark = [pytest.mark.root, pytest.mark.functional]


@pytest.mark.parametrize("name", ["sockets_unix", "sockets_inet"])
def test_workload(name, place):
    import ctypes

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    process = start(name, place)
    images = place / "images"
    try:
        wait_for(place / "ready", f"{name} did not set up: {(place / 'errors').read_text()}")
        api.dump([DumpOptions(pid=process.pid, images_dir=images, tcp=TcpPolicy.REFUSE)])
    finally:
        end(process)
    api.restore(RestoreOptions(images_dir=images))
    (place / "go").touch()
    text = wait_for(place / "result", f"{name} gave no result")
    assert text == "ok", text

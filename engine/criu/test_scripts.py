# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.criu.scripts import Scripts
from torpor.engine.errors import Refused

TELL = """#!/bin/sh
echo "$CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR ${CRTOOLS_INIT_PID-none} $PWD" >> told
[ "$CRTOOLS_SCRIPT_ACTION" != fail ]
"""


@pytest.fixture
def scripts(tmp_path):
    script = tmp_path / "tell.sh"
    script.write_text(TELL)
    script.chmod(0o755)
    return Scripts(paths=["./tell.sh", str(script)], work_dir=tmp_path, images_dir=tmp_path / "i")


def test_what_a_script_is_told(scripts, tmp_path):
    scripts.run("pre-restore")
    scripts.run("post-restore", 7)
    lines = (tmp_path / "told").read_text().splitlines()
    assert (
        lines
        == [f"pre-restore {tmp_path}/i none {tmp_path}"] * 2
        + [f"post-restore {tmp_path}/i 7 {tmp_path}"] * 2
    )


def test_all_run_although_one_fails(scripts, tmp_path):
    with pytest.raises(Refused, match="exited with 1"):
        scripts.run("fail")
    scripts.run_leniently("fail")
    assert len((tmp_path / "told").read_text().splitlines()) == 4


def test_one_that_is_not_there(tmp_path):
    with pytest.raises(Refused, match="cannot be executed"):
        Scripts(paths=["./none"], work_dir=tmp_path, images_dir=tmp_path).run("pre-dump", 1)

# SPDX-License-Identifier: Apache-2.0
from torpor.engine.kernel import disks


def test_idle_and_busy(tmp_path):
    assert disks.are_idle(0, tmp_path)
    for name, text in (("vda", "       0        0\n"), ("vdb", "       0        2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inflight").write_text(text)
        assert disks.are_idle(0, tmp_path) is (name == "vda")

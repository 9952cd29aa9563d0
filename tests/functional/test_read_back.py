# SPDX-License-Identifier: Apache-2.0
"""No checkpoint is called whole that a restore does not understand."""

import errno

import pytest

from torpor.engine.dump import images
from torpor.engine.errors import Bug, KernelError
from torpor.engine.options import After

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.mark.parametrize("after", [After.STOP, After.CONTINUE])
def test_images_that_cannot_be_read(start, monkeypatch, after):
    live = start("core_sysv")
    live.await_ready()
    before = live.look()
    with monkeypatch.context() as patched:
        patched.setattr(
            images.sysv, "encode", lambda _, out: out.extra("sysv", "segments", ["rubbish"])
        )
        with pytest.raises(Bug, match="cannot be read") as error:
            live.dump(after=after)
    assert "torpor.json, sysv" in error.value.cause
    assert not [path.name for path in (live.folder / "images").iterdir() if path.suffix == ".img"]
    live.unharmed()
    live.same_as(before)
    live.dump("again")
    live.restore("again")
    assert live.verdict() == "ok"


def test_a_dump_that_cannot_look_says_so(start, monkeypatch):
    def load(path, **_):
        raise KernelError("cannot open an image", errno=errno.EMFILE, subject=str(path))

    live = start("core_sysv")
    live.await_ready()
    with monkeypatch.context() as patched:
        patched.setattr(images, "load", load)
        live.dump()
    assert any("was not read again" in warning for warning in live.report.warnings)
    live.restore()
    assert live.verdict() == "ok"

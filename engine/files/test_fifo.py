# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files import regular
from torpor.engine.files.common import O
from torpor.engine.files.fifo import KIND, Fifo
from torpor.engine.files.pipe import Queue
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId


def end(flags, **more):
    values = {"link": "/run/fifo", "fcntls": {1032: 65536}, "pipe": b"queued"} | more
    return RecordedFd(st_mode=0o10640, flags=flags, **values)


def collect(*views):
    context = dump_context(views={FileId(i): view for i, view in enumerate(views, 1)})
    return {i: KIND.collect(view, context) for i, view in context.views.items()}


def test_named():
    views = end(0), end(O.WRONLY | O.NONBLOCK)
    assert all(KIND.matches(view) and not regular.KIND.matches(view) for view in views)
    states = collect(*views)
    assert states[2] == Fifo(
        fifo_id=1,
        path="/run/fifo",
        flags=O.WRONLY | O.NONBLOCK,
        mode=0o10640,
        queue=Queue(content=b"queued"),
    )
    back, images = through_images(KIND, states)
    assert back == states
    assert {entry.regf_id for _, entry in images.files("FIFO")} == {0x40000001, 0x40000002}
    text = described(KIND, back, plan_context(1, 2))
    assert [line.split("  #")[0] for line in text.splitlines()] == [
        "openat(-100, '/run/fifo', 2, 0) → open600", "dup3($open600, 600, 0)", "close($open600)",
        "openat(-100, '/run/fifo', 0, 0) → open513", "dup3($open513, 513, 0)", "close($open513)",
        "openat(-100, '/run/fifo', 2049, 0) → open514", "dup3($open514, 514, 0)",
        "close($open514)", "write(600, <6 bytes>, 6)", "close(600)",
    ]  # fmt: skip


def test_unlinked():
    states = collect(end(O.RDWR, link="/run/fifo (deleted)", st_nlink=0, paths={"/run": (1, 1)}))
    back, _ = through_images(KIND, states)
    assert back == states
    assert back[1].ghost.path == "/run/fifo"
    assert "mknodat($ghost1.folder, '.torpor-ghost-1', 0x1180, 0)" in described(
        KIND, back, plan_context(1)
    )


def test_limits():
    with pytest.raises(Refused):
        collect(end(0, poll=1))
    assert collect(end(0, poll=16))
    assert collect(end(0, poll=0, pipe=b""))
    with pytest.raises(Refused):
        collect(end(O.RDWR, paths={}))


def test_a_fifo_without_a_name_in_the_images():
    _, images = through_images(KIND, collect(end(O.RDWR)))
    images.images["files"] = [e for e in images.images["files"] if b"/run/fifo" not in e[1]]
    with pytest.raises(BadImage):
        KIND.decode(images)

# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.common import O
from torpor.engine.files.pipe import KIND, POLLERR, POLLHUP, Pipe, Queue
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId, Holder

GETPIPE_SZ = 1032


def end(flags, inode=7, **more):
    values = {"fcntls": {GETPIPE_SZ: 65536}, "pipe": b"queued"} | more
    return RecordedFd(link=f"pipe:[{inode}]", st_mode=0o10600, st_ino=inode, flags=flags, **values)


def collect(views, container=False, **more):
    """States of views, held by task 1 at the views' numbers."""
    context = dump_context(
        **more,
        container=container,
        views={FileId(i): view for i, view in enumerate(views, 1)},
        holders={FileId(i): [Holder(task=1, fd=v.fd)] for i, v in enumerate(views, 1)},
    )
    states = {i: KIND.collect(view, context) for i, view in context.views.items()}
    return states, list(KIND.check(states, context))


def test_both_ends():
    states, refused = collect([end(0), end(O.WRONLY | O.NONBLOCK | O.CLOEXEC)])
    assert not refused
    assert states[2] == Pipe(pipe_id=7, flags=O.WRONLY | O.NONBLOCK, queue=Queue(content=b"queued"))
    back, images = through_images(KIND, states)
    assert back == states
    assert len(list(images.entries("pipes-data"))) == 1
    what = "  # fd 3 -> pipe:[7]"
    assert described(KIND, back, plan_context(1, 2)).splitlines() == [
        f"pipe2(buffer[8], 0){what}",
        f"@load32(buffer[8], 0) → pipe7.r{what}",
        f"@load32(buffer[8], 4) → pipe7.w{what}",
        f"write($pipe7.w, <6 bytes>, 6){what}: what was queued",
        f"dup3($pipe7.r, 513, 0){what}",
        f"close($pipe7.r){what}",
        "dup3($pipe7.w, 514, 0)  # fd 4 -> pipe:[7]",
        "close($pipe7.w)  # fd 4 -> pipe:[7]",
        "fcntl(514, 4, 2048)  # fd 4 -> pipe:[7]: status flags",
    ]


def test_a_further_description_is_opened_by_proc():
    states, _ = collect([end(0), end(O.WRONLY), end(O.RDWR)])
    text = described(KIND, states, plan_context(1, 2, 3))
    assert "openat(-100, '/proc/self/fd/600', 2, 0) → open515" in text
    assert "close(600)" in text


def test_an_end_that_nobody_has_is_closed():
    states, refused = collect([end(0, poll=POLLHUP | 1)])
    assert not refused
    assert not states[1].is_outer
    assert "close($pipe7.w)" in described(KIND, states, plan_context(1))
    states, refused = collect([end(O.WRONLY, poll=POLLERR)])
    assert not refused
    assert states[1].queue.content == b""


def test_an_end_outside_is_refused():
    states, refused = collect([end(O.WRONLY, fd=9)])
    assert states[1].is_outer
    assert [r.what for r in refused] == ["the other end of the pipe is held by a task outside of"
                                         " the tree"]  # fmt: skip
    assert "task 1 fd 9" in refused[0].cause
    assert collect([end(O.WRONLY, fd=9)], container=True)[1]


def test_stdio_of_a_container_is_bound_to_the_new_one():
    views = [
        end(O.WRONLY, fd=1), end(O.WRONLY | O.APPEND, fd=8), end(O.WRONLY, inode=9, fd=2),
        end(0, inode=5, fd=0),
    ]  # fmt: skip
    states, refused = collect(views, container=True)
    assert not refused
    assert [s.stdio for s in states.values()] == [1, 1, 2, 0]
    back, _ = through_images(KIND, states)
    assert back == states
    context = plan_context(1, 2, 3, 4, stdio={0: 700, 1: 701, 2: 702})
    context.holders = {i: [Holder(task=1, fd=v.fd)] for i, v in enumerate(views, 1)}
    assert [line.split("  #")[0] for line in described(KIND, back, context).splitlines()] == [
        "dup3(701, 513, 0)", "dup3(701, 514, 0)", "dup3(702, 515, 0)", "dup3(700, 516, 0)",
    ]  # fmt: skip
    with pytest.raises(Refused):
        KIND.plan(back, plan_context(1, 2, 3, 4))


def test_one_end_alone_where_that_is_allowed():
    views = [end(O.WRONLY, fd=9)]
    assert len(collect(views)[1]) == 1
    states, refused = collect(views, half_pipes=True)
    assert not refused
    plan = described(KIND, states, plan_context(1))
    assert "pipe2" in plan
    assert "nobody has this end" in plan


def test_inherited_by_name():
    states, _ = collect([end(O.WRONLY, fd=1, poll=POLLERR)])
    context = plan_context(1, inherit={"pipe:[7]": 650})
    assert described(KIND, states, context).startswith("dup3(650, 513, 0)")


def test_packets():
    packets = [b"one", b"three"]
    states, _ = collect([end(0, packets=packets), end(O.WRONLY | O.DIRECT, packets=packets)])
    back, _ = through_images(KIND, states)
    assert back == states
    plan = described(KIND, back, plan_context(1, 2)).splitlines()
    assert [line.split("  #")[0] for line in plan if "$pipe7.w" in line][:3] == [
        "fcntl($pipe7.w, 4, 0x4000)",
        "write($pipe7.w, <3 bytes>, 3)",
        "write($pipe7.w, <5 bytes>, 5)",
    ]
    states, _ = collect([end(0, pipe=b""), end(O.WRONLY | O.DIRECT, pipe=b"")])
    assert "fcntl(514, 4, 0x4000)" in described(KIND, states, plan_context(1, 2))


def test_content_larger_than_the_pipe():
    images = RecordedImages()
    KIND.encode({FileId(1): Pipe(pipe_id=7, flags=0)}, images)
    images.images["pipes-data"] = []
    images.add("pipes-data", pb.pipe_data_entry(pipe_id=7, bytes=9, size=8), b"123456789")
    with pytest.raises(BadImage):
        KIND.decode(images)


def test_a_write_end_is_known_without_what_is_queued():
    """That is read from a read end; where there is none it is lost."""
    assert KIND.suffice(end(O.WRONLY, is_queue_told=False), dump_context())
    assert not KIND.suffice(end(0, is_queue_told=False), dump_context())
    assert KIND.suffice(end(O.RDWR), dump_context())

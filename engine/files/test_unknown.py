# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import Refused
from torpor.engine.files import (
    device,
    epoll,
    eventfd,
    fifo,
    inotify,
    memfd,
    pidfd,
    pipe,
    procfs,
    regular,
    signalfd,
    terminal,
    timerfd,
    unknown,
)
from torpor.engine.files.common import O
from torpor.engine.kernel.recorded import RecordedFd, dump_context

KINDS = [
    eventfd.KIND, signalfd.KIND, timerfd.KIND, inotify.KIND, pidfd.KIND, pipe.KIND, fifo.KIND,
    memfd.KIND, terminal.KIND, device.KIND, procfs.KIND, regular.KIND, unknown.KIND, epoll.KIND,
]  # fmt: skip
ANON = {"st_mode": 0o600, "fs_magic": 0x09041934}


def device_view(major, minor, poll=0):
    number = (major & 0xFFF) << 8 | minor & 0xFF | (minor & ~0xFF) << 12
    return RecordedFd(link="/dev/x", st_mode=0o20666, st_rdev=number, poll=poll)


@pytest.mark.parametrize(
    ("view", "case"),
    [
        (RecordedFd(link="anon_inode:[userfaultfd]", **ANON), "userfaultfd"),
        (RecordedFd(link="anon_inode:[perf_event]", **ANON), "perf"),
        (RecordedFd(link="anon_inode:[never-seen]", **ANON), "anonymous"),
        (
            RecordedFd(link="/q", fs_magic=0x19800202, st_mode=0o041777),
            "message-queue-directory",
        ),
        (RecordedFd(link="/secretmem (deleted)", fs_magic=0x5345434D), "secret-memory"),
        (RecordedFd(link="/dev/sda", st_mode=0o60660), "block-device"),
        (device_view(5, 3), "terminal-device"),
        (device_view(10, 229), "fuse"),
        (device_view(195, 255), "gpu-nvidia"),
        (device_view(250, 70000), "device"),
        (
            RecordedFd(link="pipe:[7]", st_mode=0o10600, fs_magic=0x50495045, flags=O.PATH),
            "path-only",
        ),
        (
            RecordedFd(link="socket:[7]", st_mode=0o140777, fs_magic=0x534F434B, flags=O.PATH),
            "path-only",
        ),
        (RecordedFd(link="/memfd:x (deleted)", st_nlink=0, flags=O.PATH), "path-only"),
    ],
)
def test_refused_by_name(view, case):
    assert [kind.name for kind in KINDS if kind.matches(view)] == ["refused"]
    limit = next(limit for limit in unknown.KIND.limits if limit.case == case)
    with pytest.raises(Refused) as error:
        unknown.KIND.collect(view, dump_context())
    assert error.value.what == limit.what
    assert error.value.remedy
    assert error.value.subject == view.subject


@pytest.mark.parametrize(
    ("view", "name"),
    [
        (RecordedFd(link="anon_inode:[eventfd]", **ANON), "eventfd"),
        (RecordedFd(link="anon_inode:[eventpoll]", **ANON), "epoll"),
        (RecordedFd(link="anon_inode:[signalfd]", **ANON), "signalfd"),
        (RecordedFd(link="anon_inode:[timerfd]", **ANON), "timerfd"),
        (RecordedFd(link="anon_inode:inotify", **ANON), "inotify"),
        (RecordedFd(link="anon_inode:[pidfd]", st_mode=0o700, fs_magic=0x50494446), "pidfd"),
        (RecordedFd(link="pipe:[7]", st_mode=0o10600, fs_magic=0x50495045), "pipe"),
        (RecordedFd(link="/run/fifo", st_mode=0o10600), "fifo"),
        (RecordedFd(link="/run/fifo", st_mode=0o10600, flags=O.PATH), "regular"),
        (RecordedFd(link="/memfd:x (deleted)", st_nlink=0), "memfd"),
        (device_view(1, 3), "device"),
        (device_view(10, 200, poll=8), "device"),
        (device_view(10, 229, poll=8), "device"),
        (device_view(10, 257), "device"),
        (device_view(136, 1), "terminal"),
        (device_view(5, 1), "terminal"),
        (RecordedFd(link="/proc/meminfo", fs_magic=0x9FA0), "procfs"),
        (RecordedFd(), "regular"),
        (RecordedFd(st_mode=0o40755), "regular"),
        (RecordedFd(st_mode=0o120777, flags=O.PATH), "regular"),
        (RecordedFd(link="/dev/sda", st_mode=0o60660, flags=O.PATH), "regular"),
    ],
)
def test_exactly_one_kind_says_yes(view, name):
    assert [kind.name for kind in KINDS if kind.matches(view)] == [name]


def test_limits_are_complete():
    for kind in KINDS:
        cases = [limit.case for limit in kind.limits]
        assert len(cases) == len(set(cases)), kind.name
        for limit in kind.limits:
            assert limit.what
            assert limit.remedy

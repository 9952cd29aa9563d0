# SPDX-License-Identifier: Apache-2.0
"""The printed plan of small trees: a review reads the difference.

To write them anew: `TORPOR_WRITE_PLANS=1 pytest engine/restore/test_plans.py`.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.trees import AREAS, ROOT, USER, memory, registers, task, thread, tree, zombie
from torpor.engine.images.inventory import write_inventory
from torpor.engine.images.pages import write_pagemap
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.writing import NewImageDirectory
from torpor.engine.inspect import plan as printed
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.memory.vdso import Group
from torpor.engine.tasks.attributes import Scheduling
from torpor.engine.tasks.encode import encode_tree
from torpor.engine.tasks.registers import Registers
from torpor.engine.tasks.seccomp import Filter
from torpor.engine.tasks.signals import Action, AltStack
from torpor.engine.tasks.timers import Itimer, PosixTimer

PLANS = Path(__file__).resolve().parents[2] / "tests/fixtures/plans"
BLOCK = Group(
    start=0x7FFFF7FC0000,
    end=0x7FFFF7FC6000,
    parts=(("vvar", 0x7FFFF7FC0000, 0x7FFFF7FC4000), ("vdso", 0x7FFFF7FC4000, 0x7FFFF7FC6000)),
)
SPECIAL = (
    Area(start=0x7FFD00000000, end=0x7FFD00004000, prot=1, backing=Backing.VVAR),
    Area(start=0x7FFD00004000, end=0x7FFD00006000, prot=5, backing=Backing.VDSO),
)
LEGACY = bytearray(registers().xstate)
LEGACY[512] = 3
PORTABLE = Registers(general=registers().general, xstate=bytes(LEGACY))
NONE = Itimer(interval_s=0, interval_us=0, value_s=0, value_us=0)


def with_vdso(**more):
    areas = sorted((*AREAS, *SPECIAL), key=lambda a: a.start)
    return memory(areas, **more)


def member(tid, **more):
    return thread(tid, registers=PORTABLE, **more)


def worker(pid, ppid=0, **more):
    values = {"memory": with_vdso(), "threads": (member(pid),)} | more
    return task(pid, ppid, **values)


def one():
    """A program alone, as root."""
    return tree(worker(41))


def server():
    """A server of a user: threads, timers, signals, a filter, settings."""
    user = replace(USER, no_new_privs=True, bounding=USER.bounding & ~(1 << 21))
    members = (
        member(41, creds=user, altstack=AltStack(pointer=0x501000, size_bytes=8192, flags=0),
               seccomp=(Filter(program=bytes(8), flags=0),), pdeathsig=15, comm=b"server"),
        member(42, creds=user, comm=b"helper", rseq=(0x501F00, 32, 0x53053053, 0),
               scheduling=Scheduling(policy=3, priority=0, nice=5, timerslack_ns=70_000)),
    )  # fmt: skip
    timer = PosixTimer(
        timer_id=0, clock=1, signal=34, notify=4, value=7, overrun=0, interval_s=1, interval_ns=0,
        value_s=0, value_ns=5, thread=42,
    )  # fmt: skip
    return tree(
        worker(
            41, threads=members, comm=b"server", cwd="/srv", umask=0o27, posix_timers=(timer,),
            itimers=(replace(NONE, interval_s=1, value_us=9), NONE, NONE),
            actions={10: Action(handler=0x400100, flags=0x4000000, restorer=0x400200, mask=0)},
            shared_pending=((12).to_bytes(4, "little").ljust(128, b"\0"),),
            rlimits=((100, 200), *((1024, 4096),) * 15),
            memory=with_vdso(dumpable=0, thp_disabled=True),
        )
    )  # fmt: skip


def family():
    """Children: one by fork with a little more memory, one of another program, a zombie."""
    more = Area(start=0x600000, end=0x700000, prot=3, backing=Backing.ANON, advice=(14,))
    other = replace(AREAS[0], path="/bin/other")
    return tree(
        worker(41, subreaper=True),
        worker(42, 41, memory=replace(with_vdso(), areas=(*AREAS[:2], more, *SPECIAL, AREAS[2]))),
        worker(43, 41, sid=43, pgid=43, personality=0x40000,
               memory=replace(with_vdso(exe="/bin/other"),
                              areas=(other, AREAS[1], *SPECIAL, AREAS[2]))),
        zombie(44, 42, exit_code=9),
    )  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    """A machine that is the same everywhere."""
    monkeypatch.setattr(printed, "_fresh_block", lambda: (BLOCK, b""))
    monkeypatch.setattr(
        printed, "current_scheduling", lambda _: Scheduling(policy=0, priority=0, nice=0)
    )
    monkeypatch.setattr(printed.resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(printed.creds, "collect", lambda *_: ROOT)
    monkeypatch.setattr(printed.proc, "read_text", lambda *_: "0")


def images_of(path, whole):
    with NewImageDirectory.create(path) as images:
        ids = pb.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1)
        write_inventory(images, root_ids=ids)
        encode_tree(whole, images, (), 100)
        for number in range(2, 2 + len(whole.tasks)):
            images.write(f"fdinfo-{number}", [])
        images.write("files", [])
        areas = [a for t in whole.tasks if t.memory for a in t.memory.areas]
        shared = {a.shared_id for a in areas if a.backing is Backing.SHARED}
        names = [f"pagemap-{t.pid}" for t in whole.tasks if t.memory]
        for number, name in enumerate([*names, *(f"pagemap-shmem-{n}" for n in shared)], 1):
            write_pagemap(images, name, number, [])
            os.close(images.create_file(f"pages-{number}"))
        return images.finish(durable=False)


@pytest.mark.parametrize("make", [one, server, family])
def test_golden(make, machine, tmp_path):
    images = images_of(tmp_path / "images", make())
    lines = [text for text, _ in printed.plan_lines(printed.restore_plan(images))]
    text = "\n".join(lines).replace(str(images), "IMAGES") + "\n"
    golden = PLANS / f"{make.__name__}.txt"
    if os.environ.get("TORPOR_WRITE_PLANS"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")

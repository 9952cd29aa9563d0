# SPDX-License-Identifier: Apache-2.0
"""Images that contradict themselves: each is refused by `restore`, `plan` and `show` alike.

Nobody has digests to tell, as in CRIU's directories: torpor.json is taken away. The refusal names
the file, and the field or number that is wrong. `show` may show what only a restore cannot use
(another architecture, say): such cases are marked.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import descendants
from tests.functional.harness import Live
from tests.fuzz.corpus import Image, encoded
from torpor.engine.cli.entry import main
from torpor.engine.images import manifest
from torpor.engine.images.proto import criu_pb2 as pb

pytestmark = [pytest.mark.faults, pytest.mark.root]

BAD_IMAGE = 7
NOWHERE = 77777
Entries = list


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("holder")
    live = Live(folder, [sys._base_executable, str(Path(__file__).parent / "holder.py"), folder])
    try:
        live.await_ready()
        images = live.dump()
    finally:
        live.end()
    assert not list(images.glob("*.tmp"))
    return images


@pytest.fixture
def images(dumped, tmp_path):
    copy = tmp_path / "images"
    shutil.copytree(dumped, copy, copy_function=os.link)
    (copy / manifest.NAME).unlink()
    return copy


def told_by(command, images, capsys):
    before = set(descendants())
    words = {"restore": ["restore", "-d", "-D"], "plan": ["plan"], "show": ["show"]}[command]
    code = main([*words, str(images), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert set(descendants()) <= before
    return code, told


def refused(images, capsys, file, text, commands=("restore", "plan", "show")):
    for command in commands:
        code, told = told_by(command, images, capsys)
        assert code == BAD_IMAGE, (command, told)
        assert file in told["subject"], (command, told)
        assert text in " ".join((told["subject"], told["what"], told["cause"])), (command, told)
        assert told["remedy"]


def first(images, pattern):
    return sorted(images.glob(pattern), key=lambda path: (len(path.name), path.name))[0]


# ---- files


NEEDED = ("inventory.img", "pstree.img", "files.img", "core-*.img", "mm-*.img", "ids-*.img",
          "fs-*.img", "fdinfo-*.img", "pagemap-[0-9]*.img", "pages-*.img", "memfd.img",
          "ghost-file-1.img")  # fmt: skip
ONLY_FOR_RESTORE = ("ghost-file-1.img", "pagemap-shmem-*.img", "pages-*.img", "fdinfo-*.img",
                    "pagemap-[0-9]*.img")  # fmt: skip


@pytest.mark.parametrize("pattern", [*NEEDED, "pagemap-shmem-*.img"])
def test_missing(images, capsys, pattern):
    for path in images.glob(pattern):
        content = path.read_bytes()
        path.unlink()
        commands = ("restore", "plan") if pattern in ONLY_FOR_RESTORE else (
            "restore", "plan", "show")  # fmt: skip
        for command in commands:
            code, told = told_by(command, images, capsys)
            assert code == BAD_IMAGE, (path.name, command, told)
            assert path.name in told["subject"] + told["cause"], (path.name, command, told)
        path.write_bytes(content)


def test_without_a_byte(images, capsys):
    checked = 0
    for path in images.glob("*.img"):
        content = path.read_bytes()
        if not content or path.name.startswith(("pages-", "ghost-file-4")):
            continue
        path.unlink()
        path.touch()
        code, told = told_by("restore", images, capsys)
        assert code == BAD_IMAGE, (path.name, told)
        assert path.name in told["subject"], told
        path.write_bytes(content)
        checked += 1
    assert checked > 15


def test_magic_of_another(images, capsys):
    for path in images.glob("*.img"):
        image = Image.of(path)
        if image is None or path.name.startswith("ghost-file-4"):
            continue
        path.unlink()
        path.write_bytes(b"\x19\x11\x32\x54" + b"\x01\x02\x03\x04" + image.content[8:])
        code, told = told_by("restore", images, capsys)
        assert code == BAD_IMAGE, (path.name, told)
        assert path.name in told["subject"], told
        assert "not an image of kind" in told["what"], told
        path.write_bytes(image.content)


# ---- fields


@dataclass(frozen=True)
class Wrong:
    """A change of one image, and what the refusal has to say."""

    name: str
    pattern: str
    change: Callable[[Entries], None]
    text: str
    file: str = ""
    shown: bool = True
    """`show` refuses as well."""


def on(number, **fields):
    """Set fields of a message."""

    def change(entries):
        for name, value in fields.items():
            setattr(entries[number][0], name, value)

    return change


def twice(entries):
    entries.append(entries[-1])


def files(kind, **fields):
    """Set fields of the first file of a kind."""

    def change(entries):
        message = next(m for m, _ in entries if m.HasField(kind))
        for name, value in fields.items():
            setattr(getattr(message, kind), name, value)

    return change


def vma(status, **fields):
    """Set fields of the first area whose status has a bit."""

    def change(entries):
        area = next(a for a in entries[0][0].vmas if a.status & status)
        for name, value in fields.items():
            setattr(area, name, value)

    return change


def core(**fields):
    def change(entries):
        for name, value in fields.items():
            setattr(entries[0][0].tc, name, value)

    return change


def own_parent(entries):
    entries[1][0].ppid = entries[1][0].pid


def parents_in_a_circle(entries):
    entries[1][0].ppid, entries[2][0].ppid = entries[2][0].pid, entries[1][0].pid


def overlap(entries):
    areas = entries[0][0].vmas
    areas[1].start = areas[0].start


def thread_twice(entries):
    entries[0][0].threads.append(entries[0][0].threads[-1])


def thread_of_another(entries):
    entries[1][0].threads.append(entries[0][0].threads[-1])


def unknown_state(entries):
    entries[0][0].tc.task_state = 77


def absent_filter(entries):
    entries[0][0].thread_core.seccomp_mode = pb.filter
    entries[0][0].thread_core.seccomp_filter = NOWHERE


def without_part(entries):
    message = next(m for m, _ in entries if m.HasField("pipe"))
    message.ClearField("pipe")


def two_parts_disagree(entries):
    message = next(m for m, _ in entries if m.HasField("pipe"))
    message.pipe.id = NOWHERE


def in_parent(entries):
    end = entries[-1][0].vaddr + 4096 * entries[-1][0].nr_pages
    entries.append((pb.pagemap_entry(vaddr=end, nr_pages=1, compat_nr_pages=1, flags=1), b""))


def too_many_pages(entries):
    entries[1][0].nr_pages = (1 << 52) + 1


CASES = (
    Wrong("descriptor of a file that is not there", "fdinfo-*.img", on(0, id=NOWHERE), "77777",
          shown=False),
    Wrong("number of a descriptor twice", "fdinfo-*.img", twice, "twice", shown=False),
    Wrong("program that is not there", "mm-*.img", on(0, exe_file_id=NOWHERE), "exe_file_id 77777",
          shown=False),
    Wrong("mapped file that is not there", "mm-*.img", vma(1 << 6, shmid=NOWHERE), "names a file",
          shown=False),
    Wrong("shared memory that is not there", "mm-*.img", vma(1 << 8, shmid=NOWHERE), "77777",
          file="pagemap-shmem-77777.img", shown=False),
    Wrong("areas that overlap", "mm-*.img", overlap, "overlaps", shown=False),
    Wrong("working directory that is not there", "fs-*.img", on(0, cwd_id=NOWHERE), "cwd_id 77777",
          shown=False),
    Wrong("root directory that is not there", "fs-*.img", on(0, root_id=NOWHERE), "root_id 77777",
          shown=False),
    Wrong("descriptor table that is not there", "ids-*.img", on(0, files_id=NOWHERE), "missing",
          file="fdinfo-77777.img", shown=False),
    Wrong("parent that is not there", "pstree.img", on(1, ppid=NOWHERE), "parent"),
    Wrong("its own parent", "pstree.img", own_parent, "parent"),
    Wrong("parents in a circle", "pstree.img", parents_in_a_circle, "parent"),
    Wrong("task twice", "pstree.img", twice, "twice"),
    Wrong("thread twice", "pstree.img", thread_twice, "twice", shown=False),
    Wrong("thread of another task", "pstree.img", thread_of_another, "twice", shown=False),
    Wrong("no such pid", "pstree.img", on(0, pid=1 << 30), "", file="core-1073741824.img"),
    Wrong("file twice", "files.img", twice, "twice"),
    Wrong("file without its part", "files.img", without_part, "part is missing"),
    Wrong("file that calls itself otherwise", "files.img", two_parts_disagree, "77777"),
    Wrong("memfd without its inode", "files.img", files("memfd", inode_id=NOWHERE),
          "inode_id 77777"),
    Wrong("fifo without a name", "files.img", files("fifo", regf_id=NOWHERE), "regf_id 77777"),
    Wrong("peer that is not there", "files.img", files("usk", peer=NOWHERE), "peer 77777"),
    Wrong("data of another pipe", "pipes-data.img", on(0, pipe_id=NOWHERE), "pipe_id 77777"),
    Wrong("data of a pipe twice", "pipes-data.img", twice, "twice"),
    Wrong("data of another fifo", "fifo-data.img", on(0, pipe_id=NOWHERE), "pipe_id 77777"),
    Wrong("inode of a memfd twice", "memfd.img", twice, "twice"),
    Wrong("remap of another file", "remap-fpath.img", on(0, orig_id=NOWHERE), "orig_id 77777"),
    Wrong("remap twice", "remap-fpath.img", twice, "twice"),
    Wrong("ghost that is not there", "remap-fpath.img", on(0, remap_id=NOWHERE), "missing",
          file="ghost-file-12fd1.img", shown=False),
    Wrong("another architecture", "core-*.img", on(0, mtype=pb.core_entry.AARCH64), "AARCH64",
          shown=False),
    Wrong("state that no task has", "core-*.img", unknown_state, "state 77", shown=False),
    Wrong("filter that is not there", "core-*.img", absent_filter, "seccomp",
          file="seccomp.img", shown=False),
    Wrong("newer version", "inventory.img", on(0, img_version=3), "version 3", shown=False),
    Wrong("pages of an earlier dump", "pagemap-[0-9]*.img", in_parent, "no link parent",
          shown=False),
    Wrong("pages file that is not there", "pagemap-[0-9]*.img", on(0, pages_id=NOWHERE), "0 bytes",
          file="pages-77777.img"),
    Wrong("more pages than there are", "pagemap-[0-9]*.img", too_many_pages, "run"),
    Wrong("address of no page", "pagemap-[0-9]*.img", on(1, vaddr=12345), "0x3039"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_field(images, capsys, case):
    path = first(images, case.pattern)
    image = Image.of(path)
    entries = list(image.entries)
    case.change(entries)
    path.unlink()
    path.write_bytes(encoded(image.kind, entries))
    commands = ("restore", "plan", "show") if case.shown else ("restore", "plan")
    refused(images, capsys, case.file or path.name, case.text, commands)


def test_as_it_is(images, capsys):
    for command in ("plan", "show"):
        assert told_by(command, images, capsys)[0] == 0


def test_payload_longer_than_the_file(images, capsys):
    path = first(images, "pipes-data.img")
    image = Image.of(path)
    message = image.entries[0][0]
    message.bytes = (1 << 32) - 1
    path.unlink()
    path.write_bytes(encoded(image.kind, [(message, b"short")]))
    refused(images, capsys, "pipes-data.img", "cut short", ("restore", "plan"))

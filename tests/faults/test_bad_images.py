# SPDX-License-Identifier: Apache-2.0
"""Image directories that were damaged, or made by somebody who means harm.

Each is refused by `torpor restore` with what, where and what to do, and nothing is created: no
task is left and the pids are free. With torpor.json every change is seen; without it (CRIU's own
directories have none) what is wrong in the images themselves still is.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import descendants
from torpor.engine import api
from torpor.engine.cli.entry import main
from torpor.engine.images import manifest
from torpor.engine.images.directory import ImageDirectory, digest
from torpor.engine.images.format import Writer
from torpor.engine.images.kinds import SERVICE, kind_of
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.options import DumpOptions

pytestmark = [pytest.mark.faults, pytest.mark.root]

BAD_IMAGE = 7
REFUSALS = (3, 5, 6, BAD_IMAGE, 8)  # docs/cli.md; a bug would be 70, a trace 1
FLIPS = 12
TREE = """
import mmap, os, pathlib, sys, tempfile, time
folder = pathlib.Path(sys.argv[1])
pipe = os.pipe()
os.write(pipe[1], b"in a pipe")
event, memory = os.eventfd(3), os.memfd_create("a")
os.write(memory, b"x" * 5000)
file, ghost = (folder / "file").open("w"), tempfile.TemporaryFile(dir=folder)
ghost.write(b"unlinked" * 100)
ghost.flush()
shared = mmap.mmap(-1, 8192)
shared[:4] = b"both"
child = os.fork()
if child:
    (folder / "ready").write_text(str(child))
time.sleep(1000)
"""


class Dumped:
    """A directory, and the pids that its tree had."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.pids: set[int] = set()
        process = subprocess.Popen(
            ["/usr/bin/python3", "-c", TREE, folder], start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 10
            while not (folder / "ready").exists() or not (folder / "ready").read_text():
                assert time.monotonic() < deadline, "the tree did not start"
                time.sleep(0.01)
            self.pids = {process.pid, int((folder / "ready").read_text())}
            api.dump([DumpOptions(pid=process.pid, images_dir=self.images)])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end(self)
        self.names = sorted(path.name for path in self.images.iterdir())
        self.used = [name for name in self.names if name not in SERVICE]
        """Those that a restore reads; the others are for people."""

    def copy(self, to: Path) -> Path:
        """Of links: whoever changes a file puts another in its place."""
        to.mkdir()
        for name in self.names:
            os.link(self.images / name, to / name)
        return to


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    return Dumped(tmp_path_factory.mktemp("dumped"))


@pytest.fixture
def images(dumped, tmp_path):
    return dumped.copy(tmp_path / "images")


def refused(dumped, images, capsys, codes=(BAD_IMAGE,)):
    """Restore; it says no, and nothing is there. Returns what it says."""
    before = set(descendants())
    code = main(["restore", "-d", "-D", str(images), "--json"])
    told = json.loads(capsys.readouterr().out)
    if code == 0:
        end(dumped)
    assert code in codes, (images, told)
    assert told["what"], told
    assert told["subject"], told
    assert told["remedy"], told
    nothing_made(dumped, before)
    return told


def end(dumped):
    """Kill what came back; the second is ours to wait for when the first has gone."""
    for pid in dumped.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in dumped.pids):
        assert time.monotonic() < deadline, "still there"
        for pid in dumped.pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def nothing_made(dumped, before):
    assert set(descendants()) <= before
    assert not [pid for pid in dumped.pids if Path(f"/proc/{pid}").exists()]


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits(name, size):
    """Some bits of a file, the same in each run: first, last and others between."""
    drawn = [int.from_bytes(hashlib.sha256(f"{name} {i}".encode()).digest()[:8], "little")
             for i in range(FLIPS)]  # fmt: skip
    return [0, 8 * size - 1, *(number % (8 * size) for number in drawn)]


def lengths(size):
    """Short, long, between; not what lacks a line's end only."""
    return sorted({0, 1, 4, 8, 9, size // 3, size // 2, size - 4, size - 2} & set(range(size)))


def test_it_would_come_back_whole(dumped, images):
    assert len(dumped.names) > 15
    assert main(["restore", "-d", "-D", str(images), "--json"]) == 0
    end(dumped)


def test_truncated(dumped, tmp_path, capsys):
    for name in dumped.used:
        content = (dumped.images / name).read_bytes()
        for length in lengths(len(content)):
            images = dumped.copy(tmp_path / f"{name}-{length}")
            replace(images / name, content[:length])
            told = refused(dumped, images, capsys)
            assert name in told["subject"], told
            shutil.rmtree(images)


def test_bit_flipped(dumped, tmp_path, capsys):
    for name in dumped.used:
        content = (dumped.images / name).read_bytes()
        for bit in bits(name, len(content)):
            images = dumped.copy(tmp_path / f"{name}-{bit}")
            replace(images / name, flipped(content, bit))
            told = refused(dumped, images, capsys)
            assert name in told["subject"], told
            shutil.rmtree(images)


def test_missing(dumped, tmp_path, capsys):
    for name in set(dumped.used) - {manifest.NAME}:
        images = dumped.copy(tmp_path / name)
        (images / name).unlink()
        told = refused(dumped, images, capsys)
        assert name in told["subject"] + told["cause"], told


def test_file_too_many(dumped, images, capsys):
    shutil.copy(images / "pstree.img", images / "core-77777.img")
    told = refused(dumped, images, capsys)
    assert "core-77777.img" in told["subject"]


# ---- without torpor.json


def test_truncated_unlisted(dumped, tmp_path, capsys):
    for name in needed(dumped):
        content = (dumped.images / name).read_bytes()
        for length in lengths(len(content)):
            images = unlisted(dumped, tmp_path / f"{name}-{length}")
            replace(images / name, content[:length])
            plan_or_refusal(dumped, images, capsys)
            shutil.rmtree(images)


def test_bit_flipped_unlisted(dumped, tmp_path, capsys):
    seen = 0
    for name in needed(dumped):
        content = (dumped.images / name).read_bytes()
        for bit in bits(name, len(content)):
            images = unlisted(dumped, tmp_path / f"{name}-{bit}")
            replace(images / name, flipped(content, bit))
            seen += plan_or_refusal(dumped, images, capsys)
            shutil.rmtree(images)
    assert seen > 10


def test_missing_unlisted(dumped, tmp_path, capsys):
    for name in needed(dumped):
        if name.startswith(("core-", "mm-", "pagemap-", "pages-", "pstree", "files")):
            images = unlisted(dumped, tmp_path / name)
            (images / name).unlink()
            refused(dumped, images, capsys)


def needed(dumped):
    return [name for name in dumped.names if name.endswith(".img")]


def unlisted(dumped, to):
    images = dumped.copy(to)
    (images / manifest.NAME).unlink()
    return images


def plan_or_refusal(dumped, images, capsys):
    """Only planned, since a flipped bit may be right as well; whether it was refused."""
    before = set(descendants())
    code = main(["restore", "--plan", "-D", str(images), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code in (0, *REFUSALS), told
    assert not code or told["subject"], told
    nothing_made(dumped, before)
    return code != 0


# ---- written by somebody: digests are right, the content is not


def rewritten(images, name, change):
    """Change the messages of an image and make torpor.json fit."""
    stem = name.removesuffix(".img")
    with ImageDirectory.open(images) as read:
        entries = list(read.entries(stem))
        listed = read.manifest
    path = images / name
    path.unlink()
    with path.open("wb") as stream:
        writer = Writer(stream, name, kind_of(stem))
        for number, entry in enumerate(entries):
            change(number, entry.message)
            writer.add(entry.message, entry.payload)
        writer.finish()
    with path.open("rb") as stream:
        files = {**listed.files, name: digest(stream.fileno())}
    text = manifest.encode(manifest.Manifest(files=files, facts=listed.facts))
    replace(images / manifest.NAME, text)


def first(images, pattern):
    return sorted(path.name for path in images.glob(pattern))[0]


def test_another_architecture(dumped, images, capsys):
    def change(_, message):
        message.mtype = pb.core_entry.AARCH64

    rewritten(images, first(images, "core-*.img"), change)
    told = refused(dumped, images, capsys, REFUSALS)
    assert "AARCH64" in str(told).upper()


def test_newer_version(dumped, images, capsys):
    def change(_, message):
        message.img_version = 3

    rewritten(images, "inventory.img", change)
    told = refused(dumped, images, capsys)
    assert told["remedy"] == "use a newer torpor"


@pytest.mark.parametrize("pages", [1 << 20, 1 << 31, (1 << 32) - 1, (1 << 52) + 1])
def test_absurd_pagemap(dumped, images, capsys, pages):
    def change(number, message):
        if number == 1:
            message.nr_pages = pages
            message.compat_nr_pages = min(pages, (1 << 32) - 1)

    rewritten(images, first(images, "pagemap-[0-9]*.img"), change)
    refused(dumped, images, capsys)


def test_pagemap_of_other_addresses(dumped, images, capsys):
    def change(number, message):
        if number == 1:
            message.vaddr = 0x10000

    rewritten(images, first(images, "pagemap-[0-9]*.img"), change)
    refused(dumped, images, capsys)


@pytest.mark.parametrize("end", [0, 0x1000, 1 << 47, 1 << 63, (1 << 64) - 4096])
def test_absurd_area(dumped, images, capsys, end):
    def change(_, message):
        message.vmas[0].end = end

    rewritten(images, first(images, "mm-*.img"), change)
    refused(dumped, images, capsys)


@pytest.mark.parametrize("pid", [0, 1, -5, 1 << 30])
def test_absurd_pid(dumped, images, capsys, pid):
    def change(number, message):
        if number == 0:
            message.pid = pid & 0xFFFFFFFF

    rewritten(images, "pstree.img", change)
    refused(dumped, images, capsys, REFUSALS)


def test_task_that_is_its_own_parent(dumped, images, capsys):
    def change(_, message):
        message.ppid = message.pid

    rewritten(images, "pstree.img", change)
    refused(dumped, images, capsys)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "core-1.img/../x", ""])
def test_paths_in_the_list(dumped, images, capsys, name):
    document = json.loads((images / manifest.NAME).read_text())
    document["files"][name] = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    document.pop("digest")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["digest"] = hashlib.sha256(text.encode()).hexdigest()
    replace(images / manifest.NAME, json.dumps(document).encode())
    told = refused(dumped, images, capsys)
    assert "lists a name" in told["what"]


# ---- what is no file


def as_link(path):
    target = path.parent.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target.resolve())


def as_relative_link(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def as_device(path):
    path.unlink()
    os.mknod(path, 0o20600, os.makedev(1, 5))  # /dev/zero, without an end


def as_fifo(path):
    path.unlink()
    os.mkfifo(path)


def as_socket(path):
    path.unlink()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))


def as_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("make", [as_link, as_relative_link, as_device, as_fifo, as_socket,
                                  as_folder])  # fmt: skip
def test_no_file(dumped, tmp_path, capsys, make):
    for name in ("inventory.img", "pstree.img", "pages-1.img", manifest.NAME):
        images = dumped.copy(tmp_path / name)
        make(images / name)
        assert name in refused(dumped, images, capsys)["subject"]
        (tmp_path / "elsewhere").unlink(missing_ok=True)


@pytest.mark.parametrize("make", [as_link, as_relative_link, as_device, as_fifo, as_socket,
                                  as_folder])  # fmt: skip
def test_no_file_unlisted(dumped, tmp_path, capsys, make):
    for name in ("inventory.img", "pstree.img", "pages-1.img"):
        images = unlisted(dumped, tmp_path / name)
        make(images / name)
        assert name in refused(dumped, images, capsys)["subject"]
        (tmp_path / "elsewhere").unlink(missing_ok=True)


def test_not_a_directory(dumped, tmp_path, capsys):
    (tmp_path / "file").write_text("no images")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "none"):
        refused(dumped, tmp_path / name, capsys, (1, *REFUSALS))

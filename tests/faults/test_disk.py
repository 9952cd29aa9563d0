# SPDX-License-Identifier: Apache-2.0
"""Nowhere to write the images: a full volume, a read-only one, one that goes away, no rights.

The dump says so in words, leaves no directory that looks whole, and the workload runs on.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from torpor.engine import api
from torpor.engine.cli.entry import main
from torpor.engine.errors import Error
from torpor.engine.options import After, DumpOptions

pytestmark = [pytest.mark.faults, pytest.mark.root]

COUNTER = """
import pathlib, sys, time
room = bytearray(b"x" * (4 << 20))
with open(sys.argv[1], "wb", buffering=0) as out:
    for number in range(1 << 20):
        out.write(b"%d\\n" % number)
        time.sleep(0.002)
"""


class Counter:
    """Writes one number after the other."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "numbers"
        self.process = subprocess.Popen(
            [sys._base_executable, "-c", COUNTER, self.out], start_new_session=True, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self.process.pid
        deadline = time.monotonic() + 10
        while not self.out.exists() or not self.out.read_text():
            assert time.monotonic() < deadline, "it did not start"
            time.sleep(0.01)

    def numbers(self) -> list[int]:
        return [int(line) for line in self.out.read_text().split("\n")[:-1]]

    def runs_on(self) -> None:
        """It counts, nobody holds it, and no number is missing."""
        seen, deadline = len(self.numbers()), time.monotonic() + 10
        while len(self.numbers()) < seen + 3:
            assert time.monotonic() < deadline, "it does not count on"
            time.sleep(0.01)
        numbers = self.numbers()
        assert numbers == list(range(len(numbers)))
        status = Path(f"/proc/{self.pid}/status").read_text()
        assert "TracerPid:\t0\n" in status


@pytest.fixture
def counter(tmp_path):
    one = Counter(tmp_path)
    yield one
    one.process.kill()
    one.process.wait()


@pytest.fixture
def volume(tmp_path):
    """A small file system of its own; `remount` changes it."""
    path = tmp_path / "volume"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def refused(counter, images, capsys, *words):
    """The command fails and says why; the workload runs on; nothing seems to be an image."""
    code = main(["dump", str(counter.pid), "-D", str(images), "--json", *words])
    told = json.loads(capsys.readouterr().out)
    assert code not in (0, 1, 70), told
    assert told["what"], told
    assert told["subject"], told
    assert told["remedy"], told
    counter.runs_on()
    with suppress(NotADirectoryError):
        assert not (images / "inventory.img").exists() or (images / "torpor.incomplete").exists()
    return " ".join(str(value) for value in told.values())


@pytest.mark.parametrize("words", [(), ("--leave-running",)], ids=["stop", "continue"])
def test_full(counter, volume, capsys, words):
    told = refused(counter, volume / "images", capsys, *words)
    assert "No space left on device" in told
    assert not list(volume.glob("*/torpor.json"))
    freed = os.statvfs(volume)
    assert freed.f_bavail * freed.f_frsize > 900 << 10, "what was written has been removed"


def test_full_to_the_last_byte(counter, volume, capsys):
    filler = os.open(volume / "filler", os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while True:
            os.write(filler, b"x" * 4096)
    os.close(filler)
    assert "No space left on device" in refused(counter, volume / "images", capsys)


def test_no_inode_left(counter, volume, capsys):
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=12", volume], check=True)
    assert "No space left on device" in refused(counter, volume / "images", capsys)


def test_read_only(counter, volume, capsys):
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    assert "Read-only file system" in refused(counter, volume / "images", capsys)


def test_becomes_read_only(counter, volume, capsys):
    """While it is written to: the images are on their way, the directory is there."""
    subprocess.run(["mount", "-o", "remount,size=64m", volume], check=True)

    def at_write(step):
        if step.phase == "write":
            subprocess.run(["mount", "-o", "remount,ro", volume], check=True)

    with pytest.raises(Error) as error:
        api.dump(
            [DumpOptions(pid=counter.pid, images_dir=volume / "images", after=After.STOP)],
            progress=at_write,
        )
    assert "Read-only file system" in str(error.value), error.value
    assert error.value.remedy
    counter.runs_on()


def test_a_file_is_in_the_way(counter, tmp_path, capsys):
    (tmp_path / "images").write_text("not a directory")
    refused(counter, tmp_path / "images", capsys)
    assert (tmp_path / "images").read_text() == "not a directory"


def test_images_are_there_already(counter, tmp_path, capsys):
    api.dump([DumpOptions(pid=counter.pid, images_dir=tmp_path / "images", after=After.CONTINUE)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    code = main(["dump", str(counter.pid), "-D", str(tmp_path / "images"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code not in (0, 1, 70), told
    assert told["remedy"], told
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == before
    counter.runs_on()


def test_its_folder_is_not_there(counter, tmp_path, capsys):
    refused(counter, tmp_path / "none" / "images", capsys)


@pytest.fixture
def interruptible():
    """Who starts this in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted(counter, tmp_path):
    """Ctrl-C in the middle of a dump."""

    def at_memory(step):
        if step.phase == "memory":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        api.dump(
            [DumpOptions(pid=counter.pid, images_dir=tmp_path / "images", after=After.STOP)],
            progress=at_memory,
        )
    assert threading.active_count() < 10
    counter.runs_on()
    assert not (tmp_path / "images" / "inventory.img").exists()

# SPDX-License-Identifier: Apache-2.0
"""An engine that may open few files or have little memory, pids that are taken, directories that
are not its own: it says so, the workload runs on, nothing is left.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import descendants, reap
from tests.faults.test_disk import Counter
from torpor.engine import api, native
from torpor.engine.errors import KernelError
from torpor.engine.options import After, DumpOptions, RestoreOptions

pytestmark = [pytest.mark.faults, pytest.mark.root]

SAID = (0, 3, 5, 6, 7, 8)
NOBODY = 65534
MIB = 1 << 20


@pytest.fixture
def counter(tmp_path):
    one = Counter(tmp_path)
    yield one
    with suppress(ProcessLookupError):
        os.kill(one.pid, signal.SIGKILL)
    one.process.wait()


def torpor(*words, limit=None, amount=0, **more):
    """The command under a limit; its exit code and what it said."""

    def limited():
        if limit is not None:
            resource.setrlimit(limit, (amount, amount))

    command = [sys.executable, "-m", "torpor.engine.cli", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          preexec_fn=limited, **more)  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}


def said_so(code, told):
    assert code in SAID, told
    if code:
        assert told["what"], told
        assert told["remedy"], told


@pytest.mark.parametrize("files", [6, 8, 12, 24, 64])
def test_few_files_for_a_dump(counter, tmp_path, files):
    images = tmp_path / "images"
    code, told = torpor("dump", str(counter.pid), "-D", str(images), "--leave-running",
                        limit=resource.RLIMIT_NOFILE, amount=files)  # fmt: skip
    said_so(code, told)
    counter.runs_on()
    assert code == 0 or not (images / "torpor.json").exists()


@pytest.mark.parametrize("mib", [64, 128, 256, 512])
def test_little_memory_for_a_dump(counter, tmp_path, mib):
    images = tmp_path / "images"
    code, told = torpor("dump", str(counter.pid), "-D", str(images), "--leave-running",
                        limit=resource.RLIMIT_AS, amount=mib * MIB)  # fmt: skip
    counter.runs_on()
    assert code == 0 or not (images / "torpor.json").exists()
    said_so(code, told)


@pytest.fixture
def dumped(counter, tmp_path):
    """Images of a workload that has ended."""
    images = tmp_path / "images"
    api.dump([DumpOptions(pid=counter.pid, images_dir=images, after=After.STOP)])
    counter.process.wait()
    return images


@pytest.mark.parametrize(
    ("limit", "amount"),
    [(resource.RLIMIT_NOFILE, n) for n in (6, 7, 8, 9, 10, 16, 32)]
    + [(resource.RLIMIT_AS, n * MIB) for n in (64, 128, 192, 256)],
)
def test_few_files_or_little_memory_for_a_restore(counter, dumped, limit, amount):
    before = set(descendants())
    code, told = torpor("restore", "-d", "-D", str(dumped), limit=limit, amount=amount)
    said_so(code, told)
    if code == 0:
        os.kill(counter.pid, signal.SIGKILL)
        os.waitpid(counter.pid, 0)
    reap()
    assert set(descendants()) <= before
    assert not Path(f"/proc/{counter.pid}").exists()


def test_its_pid_is_taken(counter, dumped):
    other = native.spawn_seed(b"/bin/sleep", [b"sleep", b"60"], set_tid=counter.pid)
    try:
        with pytest.raises(KernelError, match=f"pid {counter.pid} cannot be had again") as error:
            api.restore(RestoreOptions(images_dir=dumped))
        assert "pid" in error.value.remedy
        assert Path(f"/proc/{other}/comm").read_text() == "sleep\n"
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def test_a_directory_of_somebody_else(tmp_path):
    tmp_path.chmod(0o755)
    folder = tmp_path / "of-root"
    folder.mkdir(mode=0o700)
    sleeper = subprocess.Popen(["/bin/sleep", "60"], user=NOBODY, start_new_session=True, cwd="/")
    try:
        code, told = torpor("dump", str(sleeper.pid), "-D", str(folder / "images"),
                            user=NOBODY, group=NOBODY, cwd="/")  # fmt: skip
        assert code == 5, told
        assert told["remedy"], told
        assert not any(folder.iterdir())
        state = Path(f"/proc/{sleeper.pid}/status").read_text()
        assert "TracerPid:\t0" in state
        assert "State:\tS" in state
    finally:
        sleeper.kill()
        sleeper.wait()

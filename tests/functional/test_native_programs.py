# SPDX-License-Identifier: Apache-2.0
"""The static programs, run for real: as pid 1, as another uid, in an empty root."""

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from native.build import build_programs

pytestmark = [pytest.mark.functional, pytest.mark.root]

SOME_UID = 54321
# rt_sigtimedwait on x86-64: where a waiting placeholder is found.
SYSCALL_NUMBER_SIGTIMEDWAIT = "128"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    built = build_programs(tmp_path_factory.mktemp("programs"))
    return {path.name: path for path in built}


@pytest.fixture
def image(tmp_path: Path, programs: dict[str, Path]) -> Path:
    """A root file system with nothing in it but the placeholder, as an init container left it."""
    shared = tmp_path / "image" / ".torpor"
    shared.mkdir(parents=True)
    target = shared / "placeholder"
    subprocess.run([programs["torpor-placeholder"], "install", target], check=True)
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path.is_relative_to("/tmp/pytest-of-root"):
            path.chmod(0o755)
    return shared.parent


@pytest.fixture
def start(image: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the placeholder as pid 1 of a pid namespace, without rights, in the empty image."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork"),
                *("chroot", f"--userspec={SOME_UID}:{SOME_UID}", "--groups=", image),
                *("/.torpor/placeholder", *arguments),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        # A change of uid clears the parent-death signal, so --kill-child is not enough.
        for child in children_of(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=10)


def wait_for(what: Callable[[], object], timeout_s: float = 10) -> object:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s")


def children_of(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def waiting_child(parent: subprocess.Popen[str]) -> int:
    """Host pid of the placeholder below `unshare`, once it waits."""

    def look() -> int | None:
        for child in children_of(parent.pid):
            if Path(f"/proc/{child}/comm").read_text() == "torpor-wait\n":
                return child
        return None

    found = wait_for(look)
    assert isinstance(found, int)
    return found


def test_installed_program_is_executable_by_all(image: Path) -> None:
    status = (image / ".torpor/placeholder").stat()
    assert stat.S_IMODE(status.st_mode) == 0o555
    assert os.listdir(image / ".torpor") == ["placeholder"]


def test_install_says_why_it_cannot(programs: dict[str, Path]) -> None:
    done = subprocess.run(
        [programs["torpor-placeholder"], "install", "/proc/nowhere"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "cannot write /proc/nowhere.new: errno 2" in done.stderr


def test_waits_as_one_thread_in_one_system_call(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    child = waiting_child(start())
    status = Path(f"/proc/{child}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["NSpid"].split()[-1] == "1"
    assert fields["Threads"] == "1"
    assert fields["Uid"].split()[0] == str(SOME_UID)
    assert int(fields["SigCgt"], 16) == 0

    def syscall() -> bool:
        return Path(f"/proc/{child}/syscall").read_text().split()[0] == SYSCALL_NUMBER_SIGTIMEDWAIT

    wait_for(syscall)
    assert int(fields["VmSize"].split()[0]) < 256


def test_ready_only_after_the_mark(
    image: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    assert start("ready").wait(10) == 1
    (image / ".torpor/restored").touch(0o444)
    assert start("ready").wait(10) == 0


def test_gives_up_with_the_reason_in_the_log(
    image: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start()
    waiting_child(process)
    fresh = image / ".torpor/give-up.new"
    fresh.write_text("Refused: no io_uring\n" * 300)
    fresh.rename(image / ".torpor/give-up")
    _, text = process.communicate(timeout=10)
    assert process.returncode == 124
    assert text == "Refused: no io_uring\n" * 300


def test_gives_up_even_when_no_reason_is_given(
    image: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start()
    waiting_child(process)
    (image / ".torpor/give-up").touch()
    assert process.wait(10) == 124


def test_second_start_after_a_restore_ends_at_once(
    image: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    (image / ".torpor/restored").touch(0o444)
    process = start()
    _, text = process.communicate(timeout=10)
    assert process.returncode == 125
    assert "restored once and has ended" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_signal_ends_the_wait(
    number: signal.Signals, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start()
    os.kill(waiting_child(process), number)
    assert process.wait(10) == 128 + number


def test_init_reaps_orphans(start: Callable[..., subprocess.Popen[str]]) -> None:
    child = waiting_child(start())
    # A shell of the host's mount namespace enters the pid namespace and leaves an orphan there.
    subprocess.run(
        ["nsenter", f"--pid=/proc/{child}/ns/pid", "sh", "-c", "(sleep 0.3 &)"], check=True
    )
    children = Path(f"/proc/{child}/task/{child}/children")
    wait_for(lambda: children.read_text() != "")
    wait_for(lambda: children.read_text() == "")


def test_seed_pauses_with_its_descriptors_open(programs: dict[str, Path]) -> None:
    read_end, write_end = os.pipe()
    process = subprocess.Popen([programs["torpor-placeholder"], "seed"], pass_fds=[write_end])
    try:
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "torpor-seed\n")
        assert str(write_end) in os.listdir(f"/proc/{process.pid}/fd")
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "SigBlk:\t0000000000000000" in status
    finally:
        process.kill()
        process.wait()
        os.close(read_end)
        os.close(write_end)


def test_wrong_arguments_are_refused(programs: dict[str, Path]) -> None:
    done = subprocess.run([programs["torpor-placeholder"], "reddy"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr

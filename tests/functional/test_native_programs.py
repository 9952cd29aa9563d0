# SPDX-License-Identifier: Apache-2.0
"""The static programs, run for real: as pid 1, as another uid, in an empty root."""

import errno
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from native.build import build_programs
from tests.functional.conftest import program
from torpor.engine import native
from torpor.engine.kernel import ptrace

pytestmark = [pytest.mark.functional, pytest.mark.root]

SOME_UID = 54321
# rt_sigtimedwait on x86-64: where a waiting placeholder is found.
SYSCALL_NUMBER_SIGTIMEDWAIT = "128"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    built = build_programs(tmp_path_factory.mktemp("programs"))
    return {path.name: path for path in built}


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that other users may walk through; pytest's own are for its owner only."""
    with tempfile.TemporaryDirectory(prefix="torpor-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def image(open_dir: Path, programs: dict[str, Path]) -> Path:
    """A root file system with nothing in it but the placeholder, as an init container left it."""
    shared = open_dir / "image" / ".torpor"
    shared.mkdir(parents=True)
    target = shared / "placeholder"
    subprocess.run([programs["torpor-placeholder"], "install", target], check=True)
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
        check=False,
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
    done = subprocess.run(
        [programs["torpor-placeholder"], "reddy"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "usage:" in done.stderr


REQUEST = struct.Struct("=Iii")
REPLY = struct.Struct("=i")
# A stock container: /proc/sys read-only, and of all rights only these two.
AS_IN_A_CONTAINER = (
    "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && "
    'exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+sys_admin,+sys_ptrace "$@"'
)


@pytest.fixture
def pod() -> Iterator[subprocess.Popen[str]]:
    """Init of a pid namespace: for each line it is sent, it makes a task and prints its pid."""
    script = "while read -r line; do sh -c 'echo $$'; done"
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate(timeout=10)


def init_of(pod: subprocess.Popen[str]) -> int:
    found = wait_for(lambda: children_of(pod.pid))
    assert isinstance(found, list)
    return int(found[0])


def next_pid(pod: subprocess.Popen[str]) -> int:
    assert pod.stdin is not None
    assert pod.stdout is not None
    pod.stdin.write("\n")
    pod.stdin.flush()
    return int(pod.stdout.readline())


@pytest.fixture(params=["on the host", "as in a container"])
def helper(
    request: pytest.FixtureRequest, open_dir: Path, programs: dict[str, Path]
) -> Iterator[tuple[Path, Path]]:
    """A running pid helper: its socket and the file its stderr goes to."""
    path, log = open_dir / "pidhelper.sock", open_dir / "log"
    command = [str(programs["torpor-pidhelper"]), "--socket", str(path)]
    if request.param == "as in a container":
        command = ["unshare", "--mount", "sh", "-c", AS_IN_A_CONTAINER, "sh", *command]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    wait_for(lambda: path.exists() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    yield path, log
    assert process.poll() is None, "the helper died"
    process.kill()
    process.wait()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    wait_for(lambda: connection.connect_ex(str(path)) == 0)
    return connection


def ask(connection: socket.socket, pid: int, want: int, what: int = 1) -> int:
    connection.send(REQUEST.pack(what, pid, want))
    (error,) = REPLY.unpack(connection.recv(64))
    return int(error)


def test_chosen_pids_come_true(helper: tuple[Path, Path], pod: subprocess.Popen[str]) -> None:
    with connect(helper[0]) as connection:
        for want in (7, 4711, 2, 32000, 3):
            assert ask(connection, init_of(pod), want) == 0
            assert next_pid(pod) == want
    assert helper[1].read_text() == ""


def test_one_shot_chooses_a_pid(programs: dict[str, Path], pod: subprocess.Popen[str]) -> None:
    subprocess.run([programs["torpor-pidhelper"], "set", str(init_of(pod)), "815"], check=True)
    assert next_pid(pod) == 815


@pytest.mark.parametrize("helper", ["as in a container"], indirect=True)
def test_refusals_are_answered_and_logged(
    helper: tuple[Path, Path], pod: subprocess.Popen[str]
) -> None:
    path, log = helper
    with connect(path) as connection:
        assert ask(connection, os.getpid(), 4711) == errno.EPERM
        assert ask(connection, os.getppid(), 4711) == errno.EPERM
        assert ask(connection, init_of(pod), 1) == errno.EINVAL
        assert ask(connection, init_of(pod), -5) == errno.EINVAL
        assert ask(connection, init_of(pod), 1 << 30) == errno.EINVAL
        assert ask(connection, -1, 5) == errno.EINVAL
        assert ask(connection, 4194303, 5) == errno.ESRCH
        assert ask(connection, init_of(pod), 5, what=3) == errno.EPROTONOSUPPORT
        for size in (1, 11, 13, 5000):
            connection.send(b"\1" * size)
            assert REPLY.unpack(connection.recv(64)) == (errno.EBADMSG,)
        assert ask(connection, init_of(pod), 99) == 0
    assert next_pid(pod) == 99
    lines = log.read_text().splitlines()
    assert len(lines) == 12
    assert all(line.startswith(f"pidhelper: refused peer {os.getpid()}") for line in lines)


@pytest.fixture
def filtered(tmp_path: Path) -> Iterator[int]:
    """The init of a pid namespace, with two filters and a second thread that has three."""
    words = [*program("filters_set"), str(tmp_path), "mremap=errno", "semctl=kill"]
    words += ["t:mremap=kill", "t:semctl=kill", "t:clone=kill"]
    process = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *words])
    wait_for((tmp_path / "ready").exists)
    yield int(children_of(process.pid)[0])
    process.kill()
    process.wait()


def filter_of(connection: socket.socket, tid: int, number: int) -> tuple[int, list[int]]:
    """An error, or the call that a filter of the workload is for and what it returns."""
    connection.send(REQUEST.pack(2, tid, number))
    answer = connection.recv(1 << 16)
    if len(answer) == REPLY.size:
        return REPLY.unpack(answer)[0], []
    error, count, flags = struct.unpack_from("=iIQ", answer)
    assert (error, count, flags, len(answer)) == (0, 4, 0, 16 + 8 * 4)
    values = [value for *_, value in struct.iter_unpack("<HBBI", answer[16:])]
    return 0, values[1:3]


def test_filters_are_read(helper: tuple[Path, Path], filtered: int) -> None:
    tids = sorted(int(path.name) for path in Path(f"/proc/{filtered}/task").iterdir())
    with connect(helper[0]) as connection:
        assert filter_of(connection, tids[0], 0) == (0, [25, 0x5002C])
        assert filter_of(connection, tids[0], 1) == (0, [66, 0x80000000])
        assert filter_of(connection, tids[0], 2) == (errno.ENOENT, [])
        assert filter_of(connection, tids[1], 2) == (0, [56, 0x80000000])
        assert filter_of(connection, tids[0], -1) == (errno.EINVAL, [])
        assert filter_of(connection, os.getpid(), 0) == (errno.EPERM, [])
        assert filter_of(connection, 4194303, 0) == (errno.ESRCH, [])
    status = Path(f"/proc/{filtered}/status")
    assert "TracerPid:\t0\n" in status.read_text()
    wait_for(lambda: "State:\tS" in status.read_text())
    helper[1].write_text("")


def test_a_thread_that_another_traces_is_not_read(helper: tuple[Path, Path], filtered: int) -> None:
    with connect(helper[0]) as connection:
        native.seize(filtered)
        try:
            assert filter_of(connection, filtered, 0) == (errno.EPERM, [])
        finally:
            native.interrupt(filtered)
            native.wait_stop(filtered)
            ptrace.release(filtered)
        assert filter_of(connection, filtered, 0)[0] == 0


@pytest.mark.parametrize("call", ["epoll_wait", "poll", "nanosleep", "read", "recv", "sigwaitinfo"])
@pytest.mark.parametrize("helper", ["as in a container"], indirect=True)
def test_a_call_goes_on_when_filters_were_read(
    helper: tuple[Path, Path], tmp_path: Path, call: str
) -> None:
    words = ["unshare", "--pid", "--fork", "--kill-child", *program("core_blocked"), tmp_path, call]
    process = subprocess.Popen(words)
    wait_for((tmp_path / "ready").exists)
    inside = int(children_of(process.pid)[0])
    tids = [int(path.name) for path in Path(f"/proc/{inside}/task").iterdir()]
    with connect(helper[0]) as connection:
        for tid in tids * 100:
            assert filter_of(connection, tid, 0) == (errno.EINVAL, [])
    assert not (tmp_path / "result").exists()
    (tmp_path / "go").touch()
    wait_for((tmp_path / "result").exists)
    assert (tmp_path / "result").read_text() == "ok"
    process.wait()


CONFINED = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
code = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, struct.pack("<HxxxxxxQ", 1, ctypes.addressof(code)), 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_helper_with_a_filter_reads_none(
    open_dir: Path, programs: dict[str, Path], filtered: int
) -> None:
    path = open_dir / "confined.sock"
    words = [sys.executable, "-c", CONFINED, str(programs["torpor-pidhelper"]), "--socket"]
    process = subprocess.Popen([*words, str(path)], stderr=subprocess.DEVNULL)
    wait_for(path.exists)
    with connect(path) as connection:
        assert filter_of(connection, filtered, 0) == (errno.EACCES, [])
    process.kill()
    process.wait()


ASK_FROM_ELSEWHERE = """
import socket, sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
try:
    connection.send(bytes(12))
    sys.exit(0 if connection.recv(64) == b"" else 1)
except OSError:
    sys.exit(0)
"""


@pytest.mark.parametrize("helper", ["on the host"], indirect=True)
@pytest.mark.parametrize(
    ("who", "why"),
    [
        (("setpriv", "--reuid=54321", "--clear-groups"), "its uid is not 0"),
        (("unshare", "--pid", "--fork"), "it is in another pid namespace"),
    ],
)
def test_strangers_are_hung_up_on(
    helper: tuple[Path, Path], who: tuple[str, ...], why: str
) -> None:
    path, log = helper
    path.chmod(0o666)
    subprocess.run([*who, sys.executable, "-c", ASK_FROM_ELSEWHERE, str(path)], check=True)
    assert why in log.read_text()


@pytest.mark.parametrize("helper", ["on the host"], indirect=True)
def test_more_peers_than_places(helper: tuple[Path, Path], pod: subprocess.Popen[str]) -> None:
    connections = [connect(helper[0]) for _ in range(17)]
    wait_for(lambda: "too many connections" in helper[1].read_text())
    for connection in connections:
        connection.close()
    with connect(helper[0]) as connection:
        assert ask(connection, init_of(pod), 50) == 0


@pytest.mark.parametrize("helper", ["on the host"], indirect=True)
def test_socket_is_for_its_owner_only(helper: tuple[Path, Path]) -> None:
    assert stat.S_IMODE(helper[0].stat().st_mode) == 0o600

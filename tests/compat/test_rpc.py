# SPDX-License-Identifier: Apache-2.0
"""The RPC: the same requests to Debian's criu and to ours, and Debian's pycriu as a caller."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from torpor.engine.images.proto import rpc_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.compat]
OURS = [sys.executable, "-I", "-m", "torpor.engine.criu"]
YES = pb.criu_req(type=pb.NOTIFY, notify_success=True)
NO = pb.criu_req(type=pb.NOTIFY, notify_success=False)
OWN, ABSENT = {"torpor.json"}, {"seccomp.img", "timens-0.img"}
NOBODY = 65534
WITHOUT_ERRNO = (errno.ENOTSUP, errno.EINVAL, errno.EPERM)
"""What ours says beside the reason where theirs says nothing."""


@dataclass(slots=True)
class Side:
    """An engine, a place for its files, and a task to dump."""

    command: list[str]
    folder: Path
    task: subprocess.Popen[bytes]
    caller: socket.socket | None = None
    process: subprocess.Popen[bytes] | None = None

    def begin(self):
        """A new `criu swrk`."""
        self.caller, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.caller.settimeout(30)
        self.process = subprocess.Popen(
            [*self.command, "swrk", str(theirs.fileno())], pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()

    def end(self):
        """Hang up; the status of the process."""
        self.caller.close()
        return self.process.wait(30)

    def ask(self, request):
        """The answer to one packet, None when there is none."""
        packet = request if isinstance(request, bytes) else request.SerializePartialToString()
        try:
            self.caller.send(packet)
            answer = self.caller.recv(1 << 16)
        except OSError:
            return None
        return pb.criu_resp.FromString(answer) if answer else None

    def talk(self, *requests):
        """What is answered to requests in one connection, in short."""
        self.begin()
        found = [self.short(self.ask(request)) for request in requests]
        self.end()
        return found

    def short(self, answer):
        """What must be the same of an answer."""
        if answer is None:
            return "hung up"
        said = [pb.criu_req_type.Name(answer.type), "yes" if answer.success else "no"]
        if answer.cr_errno not in (0, *WITHOUT_ERRNO):
            said.append(str(answer.cr_errno))
        if answer.HasField("notify"):
            said += [answer.notify.script, "root" * (answer.notify.pid == self.task.pid)]
        if answer.HasField("restore"):
            said.append({self.task.pid: "root", -1: "none"}.get(answer.restore.pid, "other"))
        if answer.HasField("dump"):
            said.append(f"restored={answer.dump.restored}")
        return " ".join(word for word in said if word)

    def request(self, kind, **fields):
        """A request with a directory and the task."""
        request = pb.criu_req(type=kind)
        request.opts.images_dir_fd = directory = os.open(self.folder, os.O_RDONLY)
        opened.append(directory)
        if kind in (pb.DUMP, pb.PRE_DUMP, pb.SINGLE_PRE_DUMP):
            request.opts.pid = self.task.pid
        request.opts.network_lock = pb.SKIP
        for name, value in fields.items():
            setattr(request.opts, name, value)
        return request

    def files(self):
        """Names of files, the task's pid as N."""
        return {
            path.name.replace(str(self.task.pid), "N") for path in self.folder.iterdir()
        } - OWN - ABSENT  # fmt: skip


opened = []


@pytest.fixture
def both(criu_root, tmp_path):
    sides = []
    for name, command in (("theirs", criu_root.criu()), ("ours", OURS)):
        folder = tmp_path / name
        folder.mkdir()
        sides.append(Side(command, folder, sleeper()))
    time.sleep(0.1)
    yield sides
    for side in sides:
        end(side.task)
    while opened:
        os.close(opened.pop())


def sleeper(**options):
    return subprocess.Popen(
        ["/bin/sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, cwd="/", **options,
    )  # fmt: skip


def end(task):
    with suppress(ProcessLookupError):
        os.kill(task.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{task.pid}").exists() and time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(task.pid, os.WNOHANG)
        time.sleep(0.005)


def same(both, look):
    theirs, ours = (look(side) for side in both)
    assert ours == theirs
    return ours


@pytest.mark.parametrize(
    "packets",
    [
        [pb.criu_req(type=pb.VERSION, keep_open=True), pb.criu_req(type=pb.VERSION)],
        [pb.criu_req(type=pb.VERSION), pb.criu_req(type=pb.VERSION)],
        [pb.criu_req(type=pb.FEATURE_CHECK)],
        [pb.criu_req(type=pb.CHECK)],
        [pb.criu_req(type=pb.WAIT_PID, pid=1)],
        [b"\xff\xff\xff"],
        [b"\x08\x63"],
        [pb.criu_req(type=pb.DUMP, opts=pb.criu_opts(images_dir_fd=-1, pid=1))],
        [pb.criu_req(type=pb.DUMP, opts=pb.criu_opts(images_dir_fd=999, pid=1))],
    ],
)
def test_requests_without_a_directory(both, packets):
    def look(side):
        answers = side.talk(*packets)
        return [answer.removesuffix(" 56") if "EMPTY" in answer else answer for answer in answers]

    same(both, look)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (pb.DUMP, {"pid": 4194303}),
        (pb.DUMP, {"pid": 4194303, "log_file": "my.log", "log_level": 4}),
        (pb.DUMP, {"log_file": "no/such.log"}),
        (pb.DUMP, {"work_dir_fd": 999}),
        (pb.DUMP, {"status_fd": 999}),
        (pb.DUMP, {"leave_running": True}),
        (pb.DUMP, {"leave_running": True, "root": "/x", "empty_ns": 1 << 30}),
        (pb.DUMP, {"leave_running": True, "config_file": "/nonexistent"}),
        (pb.DUMP, {"leave_running": True, "manage_cgroups": True, "manage_cgroups_mode": 0}),
        (pb.DUMP, {"leave_running": True, "ghost_limit": 4096, "timeout": 5}),
        (pb.DUMP, {"lsm_profile": "x"}),
        (pb.RESTORE, {}),
        (pb.CHECK, {}),
        (pb.CHECK, {"log_file": "check.log"}),
        (pb.CPUINFO_DUMP, {}),
        (pb.CPUINFO_CHECK, {}),
    ],
)
def test_one_request(both, kind, fields):
    def look(side):
        answers = side.talk(side.request(kind, **fields), pb.criu_req(type=pb.VERSION))
        running = side.task.poll() is None
        if "lsm_profile" in fields:  # ours is refused as an option, theirs where it is used
            return [answer.replace(" 56", "") for answer in answers], running
        if kind == pb.CPUINFO_CHECK:  # theirs has no errno for a file that is not there
            return [answer.replace(" no 2", " no") for answer in answers], running
        return answers, running, side.files()

    same(both, look)


def test_a_dump_and_a_restore_with_notifications(both):
    def look(side):
        told = [side.talk(side.request(pb.DUMP, notify_scripts=True), YES, YES, YES), side.files()]
        side.task.wait(10)
        told.append(side.talk(side.request(pb.RESTORE, notify_scripts=True), YES, YES, YES, YES))
        parent = Path(f"/proc/{side.task.pid}/stat").read_text().rpartition(") ")[2].split()[1]
        return [*told, parent == str(os.getpid())]

    told = same(both, look)
    assert told[0][-1] == "DUMP yes restored=False"
    assert told[2][-1] == "RESTORE yes root"


@pytest.mark.parametrize(
    "replies", [[NO], [YES, NO], [YES, YES, NO], [pb.criu_req(type=pb.VERSION)]]
)
def test_a_caller_that_gives_a_dump_up(both, replies):
    def look(side):
        told = side.talk(side.request(pb.DUMP, notify_scripts=True), *replies)
        time.sleep(0.1)
        return told, side.task.poll(), any("core" in name for name in side.files())

    told, status, _ = same(both, lambda side: (*look(side)[:2], None))
    assert told[-1].startswith("DUMP no")
    assert status is None


def test_a_restore_as_a_sibling_is_the_callers_child(both):
    def look(side):
        told = [side.talk(side.request(pb.DUMP))]
        side.task.wait(10)
        told.append(side.talk(side.request(pb.RESTORE, rst_sibling=True)))
        os.kill(side.task.pid, signal.SIGTERM)
        return told, os.waitstatus_to_exitcode(os.waitpid(side.task.pid, 0)[1])

    assert same(both, look)[1] == -signal.SIGTERM


def test_a_pid_that_is_taken(both):
    def look(side):
        side.talk(side.request(pb.DUMP, leave_running=True))
        return side.talk(side.request(pb.RESTORE))

    assert same(both, look) == ["RESTORE no 17 none"]


def test_a_page_server_takes_a_dump(both):
    """A page server of ours takes the pages of their dump, and theirs those of ours."""
    theirs, ours = both
    for server, client in ((theirs, ours), (ours, theirs)):
        place = server.folder / "pages"
        place.mkdir()
        server.begin()
        begun = server.request(pb.PAGE_SERVER_CHLD)
        begun.keep_open = True
        begun.opts.images_dir_fd = os.open(place, os.O_RDONLY)
        opened.append(begun.opts.images_dir_fd)
        answer = server.ask(begun)
        assert (answer.type, answer.success) == (pb.PAGE_SERVER, True)
        dump = client.request(pb.DUMP, leave_running=True)
        dump.opts.ps.address, dump.opts.ps.port = "127.0.0.1", answer.ps.port
        assert client.talk(dump)[0].startswith("DUMP yes")
        waited = server.ask(pb.criu_req(type=pb.WAIT_PID, pid=answer.ps.pid))
        assert (waited.success, waited.status) == (True, 0)
        assert server.end() == 0
        assert any(path.name.startswith("pages-") for path in place.iterdir())


RUNC = {
    "root": "/", "notify_scripts": True, "manage_cgroups": True, "manage_cgroups_mode": 6,
    "empty_ns": 1 << 30, "orphan_pts_master": True, "config_file": "/etc/criu/runc.conf",
    "evasive_devices": True, "log_level": 4, "log_file": "dump.log", "leave_running": True,
    "file_locks": True,
}  # fmt: skip


def test_what_runc_says_gets_as_far_as_the_namespaces(tmp_path):
    task = subprocess.Popen(
        ["unshare", "-m", "-u", "/bin/sleep", "1000"], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    side = Side(OURS, tmp_path, task)
    try:
        while b"sleep" not in Path(f"/proc/{task.pid}/cmdline").read_bytes().split(b"\0")[0]:
            time.sleep(0.01)
        request = side.request(pb.DUMP, **RUNC)
        request.opts.ext_mnt.add(key="/etc/hosts", val="/etc/hosts")
        request.opts.external.append("net[4026531840]:extRootNetNS")
        side.begin()
        assert side.short(side.ask(request)) == "NOTIFY yes pre-dump"
        assert side.short(side.ask(YES)) == "NOTIFY yes query-ext-files"
        answer = side.ask(YES)
        side.end()
    finally:
        end(task)
        while opened:
            os.close(opened.pop())
    assert (answer.type, answer.success, answer.cr_errno) == (pb.DUMP, False, 95)
    assert "mount namespace" in answer.cr_errmsg


PYCRIU = """
import json, os, sys, time
import pycriu
how, what, pid, images = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
criu = pycriu.criu()
(criu.use_sk if how == "service" else criu.use_binary)(what)
criu.opts.images_dir_fd = os.open(images, os.O_RDONLY)
criu.opts.log_level = 4
criu.opts.network_lock = 3
told = []
def tell(name, *arguments):
    try:
        told.append([name, str(getattr(criu, name)(*arguments)).strip()])
    except pycriu.CRIUExceptionExternal as error:
        told.append([name, str(error)])
tell("check")
criu.opts.pid = 4194303
tell("dump")
criu.opts.pid = pid
criu.opts.leave_running = True
tell("dump")
tell("restore")
criu.opts.leave_running = False
tell("dump")
while os.path.exists(f"/proc/{pid}"):
    time.sleep(0.01)
tell("restore")
print(json.dumps(told))
"""


def with_pycriu(criu_root, how, what, side):
    threading.Thread(target=side.task.wait).start()  # its pid is to be free when it has ended
    done = subprocess.run(
        [*criu_root.python("-c", PYCRIU), how, str(what), str(side.task.pid), str(side.folder)],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    pid = str(side.task.pid)
    words = done.stdout.splitlines()[-1]
    return [[name, text.replace(pid, "PID").replace("Error(95)", "Error(0)")]
            for name, text in json.loads(words)]  # fmt: skip


def executable(side):
    """Pycriu wants a path, no words."""
    script = side.folder.parent / f"{side.folder.name}-criu"
    script.write_text(f'#!/bin/sh\nexec {" ".join(side.command)} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("how", ["swrk", "service"])
def test_debians_pycriu_finds_no_difference(both, criu_root, how):
    def look(side):
        if how == "swrk":
            return with_pycriu(criu_root, how, executable(side), side)
        with service(side) as path:
            return with_pycriu(criu_root, how, path, side)

    told = same(both, look)
    assert told[-1] == ["restore", "pid: PID"]
    for side in both:
        assert Path(f"/proc/{side.task.pid}/comm").read_text() == "sleep\n"


class service:
    """A `criu service` of one engine."""

    def __init__(self, side, *words):
        self.path = side.folder.parent / f"{side.folder.name}-service"
        self.command = [*side.command, "service", "--address", str(self.path), *words]

    def __enter__(self):
        ready, told = os.pipe()
        self.process = subprocess.Popen(
            [*self.command, "--status-fd", str(told)], pass_fds=(told,), cwd=self.path.parent,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(told)
        assert os.read(ready, 1) == b"\0"
        os.close(ready)
        return self.path

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(10) == -signal.SIGTERM


CLIENT = """
import os, socket, sys
from torpor.engine.images.proto import rpc_pb2 as pb
caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
caller.connect(sys.argv[1])
request = pb.criu_req(type=pb.DUMP)
request.opts.images_dir_fd = os.open(sys.argv[3], os.O_RDONLY)
request.opts.pid, request.opts.leave_running = int(sys.argv[2]), True
caller.send(request.SerializeToString())
answer = pb.criu_resp.FromString(caller.recv(1 << 16))
print(answer.success, answer.cr_errmsg)
"""


def test_a_caller_who_is_not_root_gets_no_more_than_it_has(tmp_path, criu_root):
    place = Path("/tmp") / f"torpor-rpc-{os.getpid()}"  # tmp_path is root's alone
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    mine, roots = sleeper(user=NOBODY, group=NOBODY, extra_groups=[]), sleeper()
    side = Side(OURS, place / "of-root", roots)
    try:
        with service(side) as path:
            path.chmod(0o666)

            def dump(task, folder, mode=0o777):
                (place / folder).mkdir()
                (place / folder).chmod(mode)
                done = subprocess.run(
                    [sys.executable, "-c", CLIENT, path, str(task.pid), place / folder],
                    capture_output=True, text=True, check=True, cwd="/",
                    user=NOBODY, group=NOBODY, extra_groups=[],
                )  # fmt: skip
                return done.stdout

            assert dump(mine, "images").startswith("True")
            assert (place / "images" / "inventory.img").stat().st_uid == NOBODY
            assert dump(roots, "of-root").startswith("False")
            assert "may not be read" in dump(roots, "again")
            assert dump(mine, "closed", 0o755).startswith("False")
        assert mine.poll() is None
        assert roots.poll() is None
    finally:
        end(mine)
        end(roots)
        subprocess.run(["rm", "-rf", place], check=True)


def test_a_service_gives_a_restored_task_descriptors_of_the_caller(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    reader, writer = os.pipe()
    task = subprocess.Popen(
        ["/bin/sleep", "1000"], stdin=subprocess.DEVNULL, stdout=writer,
        stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip
    side = Side(OURS, images, task)
    name = Path(f"/proc/self/fd/{writer}").readlink()
    replacement, given = os.pipe()
    try:
        with service(side) as path:
            for kind in (pb.DUMP, pb.RESTORE):
                request = side.request(kind)
                if kind == pb.RESTORE:
                    task.wait(10)
                    request.opts.inherit_fd.add(key=str(name), fd=given)
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as side.caller:
                    side.caller.connect(str(path))
                    answer = side.ask(request)
                    assert answer.success, answer.cr_errmsg
            after = Path(f"/proc/{task.pid}/fd/1").readlink()
        assert after == Path(f"/proc/self/fd/{given}").readlink()
    finally:
        end(task)
        for fd in (reader, writer, replacement, given, *opened):
            os.close(fd)
        opened.clear()


def test_a_service_as_a_daemon_has_a_pid_file(both):
    def look(side):
        where = side.folder
        done = subprocess.run(
            [*side.command, "service", "-d", "-W", where, "--address", "s", "--pidfile", "p"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            check=True, cwd="/", timeout=30,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not (where / "p").exists() or not (where / "p").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pid = int((where / "p").read_text())
        session = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[3]
        os.kill(pid, signal.SIGTERM)
        mode = (where / "s").stat().st_mode & 0o777
        return done.returncode, session == str(pid), oct(mode), side.files()

    same(both, look)

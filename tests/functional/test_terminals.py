# SPDX-License-Identifier: Apache-2.0
"""Programs on terminals of the outside: sessions of their own, jobs of a shell, named terminals."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.functional.conftest import program

pytestmark = [pytest.mark.functional, pytest.mark.root]
CRIU = (sys.executable, "-m", "torpor.engine.criu")
PATIENCE_S = 20.0
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"}


class Terminal:
    """A pseudo terminal that we have the master of."""

    def __init__(self):
        self.master, slave = pty.openpty()
        self.path = os.ttyname(slave)
        status = os.fstat(slave)
        self.name = f"tty[{status.st_rdev:x}:{status.st_dev:x}]"
        os.close(slave)
        self.said = ""

    def spawn(self, command):
        """A leader of a new session that has it as 0, 1, 2 and controlling terminal."""
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                fd = os.open(self.path, os.O_RDWR)
                fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
                for number in range(3):
                    os.dup2(fd, number)
                os.closerange(3, 256)
                os.execve(command[0], [str(word) for word in command], ENVIRONMENT)
            finally:
                os._exit(99)
        return pid

    def run(self, command, kept=()):
        """With it as 0, 1, 2, in a new session that does not have it."""
        fd = os.open(self.path, os.O_RDWR | os.O_NOCTTY)
        try:
            return subprocess.run(command, stdin=fd, stdout=fd, stderr=fd, pass_fds=kept,
                                  start_new_session=True, check=False, timeout=60)  # fmt: skip
        finally:
            os.close(fd)

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, pattern):
        """Read until the pattern has come; what was said so far is dropped."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.said!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                with suppress(OSError):  # no slave is open, for now
                    self.said += os.read(self.master, 4096).decode(errors="replace")
        self.said = self.said[found.end() :]
        return found


def until(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def reaped(pid):
    def look():
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return not Path(f"/proc/{pid}").exists()

    until(look, f"task {pid} does not end")


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, 9)
    reaped(pid)


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    os.close(made.master)


@pytest.fixture
def folder(tmp_path):
    for number in "12":
        (tmp_path / number).mkdir()
    return tmp_path


def command(folder, *arguments):
    return [*program("devices_outside"), str(folder), *arguments]


def verdict(folder, terminal, pid):
    (folder / "go").touch()
    terminal.expect(rf"\[{pid} on its terminal\]")
    terminal.type("k")
    until((folder / "result").exists, "it says nothing")
    assert (folder / "result").read_text() == "ok"


@pytest.mark.parametrize("arguments", [(), ("current",)])
def test_leader_of_a_session(terminal, folder, arguments):
    pid = terminal.spawn(command(folder, *arguments))
    try:
        until((folder / "ready").exists, "it is not ready")
        for number in "12":
            images = str(folder / number)
            done = subprocess.run([*CRIU, "dump", "-t", str(pid), "-D", images], check=False,
                                  capture_output=True, text=True)  # fmt: skip
            assert done.returncode
            assert re.search(r"--shell-job|external tty", done.stderr)
            log = ("-v4", "-o", "log")
            subprocess.run([*CRIU, "dump", "-t", str(pid), "-D", images, "-j", *log], check=True)
            reaped(pid)
            done = terminal.run([*CRIU, "restore", "-d", "-j", "-D", images, *log])
            assert done.returncode == 0, (folder / number / "log").read_text()
        verdict(folder, terminal, pid)
    finally:
        kill(pid)


def test_terminal_that_is_named(terminal, folder):
    pid = terminal.spawn(command(folder))
    other = Terminal()
    try:
        until((folder / "ready").exists, "it is not ready")
        images = str(folder / "1")
        dump = [*CRIU, "dump", "-t", str(pid), "-D", images, "--external", terminal.name]
        subprocess.run(dump, check=True)
        reaped(pid)
        fd = os.open(other.path, os.O_RDWR | os.O_NOCTTY)
        os.set_inheritable(fd, True)
        restore = [
            *CRIU,
            "restore",
            "-d",
            "-D",
            images,
            "--inherit-fd",
            f"fd[{fd}]:{terminal.name}",
        ]
        subprocess.run(restore, check=True, pass_fds=(fd,), start_new_session=True)
        os.close(fd)
        verdict(folder, other, pid)
    finally:
        kill(pid)
        os.close(other.master)


@pytest.mark.parametrize("arguments", [(), ("current",)])
def test_job_of_a_shell(terminal, folder, arguments):
    """Started by a shell, dumped from elsewhere, restored by the shell in the foreground."""
    shell = terminal.spawn(["/bin/bash", "--norc", "--noprofile", "-i"])
    words = " ".join(command(folder, *arguments))
    pid = 0
    try:
        terminal.type("PS1='ready> '; stty -echo\n")
        terminal.expect(r"ready> ")
        terminal.type(f"{words}\n")
        until((folder / "ready").exists, "it is not ready")
        pid = int(Path(f"/proc/{shell}/task/{shell}/children").read_text())
        assert os.getpgid(pid) == pid
        assert os.getsid(pid) == shell
        images = str(folder / "1")
        subprocess.run([*CRIU, "dump", "-t", str(pid), "-D", images, "-j"], check=True)
        reaped(pid)
        terminal.type(f"{' '.join(CRIU)} restore -j -D {images} -v4 -o log; echo ended $?.\n")
        until(lambda: Path(f"/proc/{pid}").exists(), "it does not come back")
        verdict(folder, terminal, pid)
        terminal.expect(r"ended 0\.")
    finally:
        if pid:
            kill(pid)
        kill(shell)


def test_size_of_the_new_terminal_is_kept(terminal, folder):
    pid = terminal.spawn(command(folder))
    size = struct.pack("<4H", 11, 22, 0, 0)
    try:
        until((folder / "ready").exists, "it is not ready")
        images = str(folder / "1")
        subprocess.run([*CRIU, "dump", "-t", str(pid), "-D", images, "-j"], check=True)
        reaped(pid)
        fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, size)
        assert terminal.run([*CRIU, "restore", "-d", "-j", "-D", images]).returncode == 0
        assert fcntl.ioctl(terminal.master, termios.TIOCGWINSZ, bytes(8)) == size
        verdict(folder, terminal, pid)
    finally:
        kill(pid)

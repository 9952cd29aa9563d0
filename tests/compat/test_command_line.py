# SPDX-License-Identifier: Apache-2.0
"""The same command lines to Debian's criu and to ours: status, files, effects on the task."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.compat]
OURS = [sys.executable, "-m", "torpor.engine.criu"]
SKIP = ("--network-lock", "skip")
OWN = {"torpor.json"}
TELL = """#!/bin/sh
state=none
[ -n "$CRTOOLS_INIT_PID" ] && state=$(sed 's/.*) //; s/ .*//' "/proc/$CRTOOLS_INIT_PID/stat")
pid=$([ -e "$PIDFILE" ] && echo pidfile)
echo "$CRTOOLS_SCRIPT_ACTION ${CRTOOLS_INIT_PID:+root} $state $(basename "$PWD") $pid" >> "$TOLD"
[ "$CRTOOLS_SCRIPT_ACTION" != "$FAIL" ]
"""


@dataclass(slots=True)
class Bench:
    """A folder, a program under test, and a task to dump."""

    command: list[str]
    folder: Path
    task: subprocess.Popen[bytes]

    def run(self, *words: str, **more: object) -> tuple[int, str]:
        """Status, and what was printed to stdout, cut to its first line."""
        text = [word.replace("PID", str(self.task.pid)) for word in words]
        done = subprocess.run(
            [*self.command, *text],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **more,
        )
        return done.returncode, done.stdout.strip().partition("\n")[0]

    def state(self) -> str:
        """Letter of the task's state, `-` when there is none (a zombie is none)."""
        deadline = time.monotonic() + 2
        while True:
            self.task.poll()
            with suppress(FileNotFoundError):
                text = Path(f"/proc/{self.task.pid}/stat").read_text()
                letter = text.rpartition(") ")[2][0]
                if letter in "RDtZ" and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                return "-" if letter == "Z" else letter
            return "-"

    def files(self, name: str = "") -> set[str]:
        """Names of files, the task's pid as N."""
        return {
            path.name.replace(str(self.task.pid), "N") for path in (self.folder / name).iterdir()
        } - OWN  # fmt: skip


@pytest.fixture
def both(criu_root, tmp_path):
    benches = []
    for name, command in (("theirs", criu_root.criu()), ("ours", OURS)):
        folder = tmp_path / name
        (folder / "img").mkdir(parents=True)
        (folder / "work").mkdir()
        script = folder / "tell.sh"
        script.write_text(TELL)
        script.chmod(0o755)
        task = subprocess.Popen(
            ["sleep", "1000"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        benches.append(Bench(command, folder, task))
    time.sleep(0.1)
    yield benches
    for bench in benches:
        end(bench)


def end(bench):
    """End the task, and wait until its pid is free."""
    with suppress(ProcessLookupError):
        os.kill(bench.task.pid, signal.SIGKILL)
    while Path(f"/proc/{bench.task.pid}").exists():
        with suppress(ChildProcessError):
            os.waitpid(bench.task.pid, os.WNOHANG)
        time.sleep(0.002)


def same(both, look):
    theirs, ours = (look(bench) for bench in both)
    assert ours == theirs


WRONG = [
    "", "dump", "dump -t", "dump -t abc", "dump -t -5", "dump -t 4194303", "pony", "dump -Z",
    "dump --nonsense", "dump --no-such", "dump -t PID more", "dump -t PID --leave-running=1",
    "dump -t PID -D /nonexistent", "dump -t PID -W /nonexistent", "dump -t PID -o no/such.log",
    "dump -t PID --network-lock x", "dump -t PID --manage-cgroups=x", "dump -t PID --cpu-cap=x",
    "dump -t PID --file-validation x", "dump -t PID --pre-dump-mode x", "dump -t PID --empty-ns x",
    "restore", "restore -D /nonexistent", "restore --inherit-fd 3", "restore -S", "restore -J x",
    "restore --inherit-fd fd[99]:pipe[3]", "restore --exec-cmd", "restore --exec-cmd -d -- true",
    "show", "exec", "cpuinfo", "cpuinfo x", "check more", "check --feature x", "--help",
    "restore -v0", "cpuinfo check", "dump -t PID --inherit-fd fd[0]:x",
    "check --inherit-fd fd[0]:x",
    "dump -t PID --mntns-compat-mode", "check --mntns-compat-mode", "pre-dump -t PID --lazy-pages",
]  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_what_needs_no_task(both, words):
    def look(bench):
        status, said = bench.run(*words.split())
        return status, bool(said), bench.files(), bench.state()

    same(both, look)


DUMPS = [
    "", "-R", "-s", "-R -s", "-v0 -o d.log", "-o d.log -v4", "-W work -o d.log", "--display-stats",
    "--cpu-cap", "--cpu-cap=none", "--cpu-cap=all", "--pidfile p", "--status-fd 9", "--close 9",
    "--ghost-limit 2M", "--timeout 5", "--leave-run", "--file-validation filesize",
    "--unprivileged", "-j", "-l", "--link-remap", "--weak-sysctls", "--skip-file-rwx-check",
    "--libdir /tmp", "--evasive-devices", "--tcp-established", "--tcp-close",
    "--manage-cgroups=none", "--manage-cgroups=ignore", "--empty-ns net", "--root /tmp",
    "--external mnt[/x]:y --external dev[8/1]:d --external net[3]:n --external pid[4]:p",
    "-M auto --skip-mnt /x --enable-fs all --enable-external-sharing --enable-external-masters",
    "--veth-pair a=b", "--libdir /nonexistent", "--join-ns net:/proc/self/ns/net", "--log-pid",
    "--external file[1:2]", "--stream", "--lsm-profile apparmor:x", "--lsm-profile none:x",
    "--lsm-profile none", "--cgroup-props x", "--cgroup-props-file /nonexistent",
]  # fmt: skip


@pytest.mark.parametrize("words", DUMPS)
def test_dump(both, words):
    def look(bench):
        status, said = bench.run("dump", "-t", "PID", "-D", "img", *SKIP, *words.split())
        return status, said, bench.files("img"), bench.files("work"), bench.state()

    same(both, look)


RESTORES = [
    "-d", "-d -s", "-d -S", "-d -o r.log -v4", "-d -W work -o r.log --pidfile p",
    "-d --display-stats",
    "-d --pidfile p", "--exec-cmd -- sh -c 'exit 4'", "-d --cpu-cap=cpu", "-d -l", "-d --tcp-close",
    "-d --file-validation buildid", "-d --manage-cgroups=ignore", "-d --pidfile tell.sh",
    "-d --empty-ns net", "-d --root /tmp", "-d --external mnt[x]:/y", "-d -M a:b --skip-mnt /x",
    "-d --join-ns net:/proc/self/ns/net -J uts:/proc/self/ns/uts", "-d --libdir /nonexistent",
    "-d --join-ns time:/proc/self/ns/time", "-d -J time:/nonexistent",
    "-d --log-pid -o r.log", "-d --log-pid", "-d -J x", "-d -J net:/nonexistent",
    "-d --stream", "-d --lsm-profile apparmor:x", "-d --lsm-profile none:x", "-d --cgroup-props x",
]  # fmt: skip


@pytest.mark.parametrize("words", RESTORES)
def test_restore(both, words):
    import shlex

    def look(bench):
        assert bench.run("dump", "-t", "PID", "-D", "img", *SKIP)[0] == 0
        bench.task.wait()
        shutil.copy(bench.folder / "tell.sh", bench.folder / "img")
        status, said = bench.run("restore", "-D", "img", *shlex.split(words))
        return status, said, bench.files("img"), bench.files("work"), bench.state()

    same(both, look)


@pytest.mark.parametrize("more", ["", "-R", "-s"])
@pytest.mark.parametrize("stage", ["", "pre-dump", "post-dump", "network-lock"])
def test_scripts_of_a_dump(both, stage, more):
    def look(bench):
        told = bench.folder / "told"
        variables = {**os.environ, "TOLD": str(told), "FAIL": stage}
        words = ["--action-script", str(bench.folder / "tell.sh"), *more.split()]
        status = bench.run("dump", "-t", "PID", "-D", "img", *SKIP, *words, env=variables)[0]
        return status, told.read_text(), bench.state()

    same(both, look)


@pytest.mark.parametrize("more", ["-d", "-d -s"])
@pytest.mark.parametrize("stage", ["", "pre-restore", "pre-resume", "post-resume"])
def test_scripts_of_a_restore(both, stage, more):
    def look(bench):
        assert bench.run("dump", "-t", "PID", "-D", "img", *SKIP)[0] == 0
        bench.task.wait()
        told = bench.folder / "told"
        variables = {**os.environ, "TOLD": str(told), "FAIL": stage, "PIDFILE": "pid"}
        words = ["--action-script", "../tell.sh", "--pidfile", "pid", *more.split()]
        status = bench.run("restore", "-D", "img", *words, env=variables)[0]
        lines = told.read_text().splitlines()  # a root that is made has some state
        # and one that runs sleeps or does not
        told_of = [
            line.replace(" root R ", " root S ")
            for line in lines
            if not line.startswith("post-restore")
        ]
        return status, told_of, len(lines), bench.state()

    same(both, look)


def test_a_script_that_ends_a_restore_ends_the_tree(both):
    def look(bench):
        assert bench.run("dump", "-t", "PID", "-D", "img", *SKIP)[0] == 0
        bench.task.wait()
        variables = {**os.environ, "TOLD": str(bench.folder / "told"), "FAIL": "post-restore"}
        words = ["restore", "-d", "-D", "img", "--action-script", "../tell.sh", "--pidfile", "pid"]
        files = bench.files("img") - {"stats-restore"}
        return bench.run(*words, env=variables)[0], bench.state(), files

    same(both, look)


def test_images_are_replaced_and_other_files_stay(both):
    def look(bench):
        for name in ("notes.txt", "core-77.txt"):
            (bench.folder / "img" / name).write_text("kept")
        (bench.folder / "img" / "pages-1.img").write_text("old" * 9999)
        for words in (["-R"], ["-R"], []):
            assert bench.run("dump", "-t", "PID", "-D", "img", *SKIP, *words)[0] == 0
        bench.task.wait()
        files = bench.files("img")
        return files, bench.run("restore", "-d", "-D", "img")[0], bench.state()

    same(both, look)


def test_one_dumps_over_the_images_of_the_other(both):
    theirs, ours = both
    for first, second in ((theirs, ours), (ours, theirs)):
        place = second.folder / "img"
        first.task, kept = second.task, first.task
        assert first.run("dump", "-t", "PID", "-D", str(place), *SKIP, "-R")[0] == 0
        first.task = kept
        assert second.run("dump", "-t", "PID", "-D", "img", *SKIP)[0] == 0
        second.task.wait()
        assert ours.run("restore", "-d", "-D", str(place))[0] == 0
        assert second.state() == "S"


def test_a_waiting_restore_ends_with_the_root(both):
    def look(bench):
        assert bench.run("dump", "-t", "PID", "-D", "img", *SKIP)[0] == 0
        bench.task.wait()
        waiting = subprocess.Popen(
            [*bench.command, "restore", "-D", "img", "--pidfile", "pid"],
            cwd=bench.folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not (bench.folder / "img" / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        still = waiting.poll()
        os.kill(bench.task.pid, signal.SIGKILL)
        return still, waiting.wait(10), bench.state()

    same(both, look)


CONFIGS = [
    "leave-running\nlog-file dump.log\n", '  log-file "d \\"x\\".log" # why\nleave-running yes\n',
    "log-file=dump.log", "nonsense\n", "dump\n", "R\n", 'log-file "open\n',
    "verbosity 4\nlog-file a\n",
    "# nothing\n\n", "log-file a\nlog-file b\n", "no-display-stats\n",
]  # fmt: skip


@pytest.mark.parametrize("text", CONFIGS)
def test_configuration_files(both, text):
    def look(bench):
        (bench.folder / "given.conf").write_text(text)
        words = [
            "dump",
            "-t",
            "PID",
            "-D",
            "img",
            *SKIP,
            "--config",
            str(bench.folder / "given.conf"),
        ]
        return bench.run(*words)[0], bench.files("img"), bench.state()

    same(both, look)


@pytest.mark.parametrize("words", ["", "--no-default-config", "--config given", "-o line"])
def test_which_configuration_counts(both, words):
    def look(bench):
        (bench.folder / ".criu").mkdir()
        (bench.folder / ".criu" / "default.conf").write_text("log-file home\n")
        (bench.folder / "variable").write_text("leave-running\n")
        (bench.folder / "given").write_text("display-stats\n")
        variables = {
            **os.environ,
            "HOME": str(bench.folder),
            "CRIU_CONFIG_FILE": str(bench.folder / "variable"),
        }
        done = bench.run("dump", "-t", "PID", "-D", "img", *SKIP, *words.split(), env=variables)
        return done, bench.files("img"), bench.state()

    same(both, look)


@pytest.mark.parametrize("closed", [(0,), (0, 1, 2)])
def test_standard_descriptors_may_be_closed(both, closed):
    def look(bench):
        def shut():
            for fd in closed:
                os.close(fd)

        words = ["-D", "img", *SKIP, "-o", "log", "-v4"]
        first = bench.run("dump", "-t", "PID", *words, preexec_fn=shut)[0]
        bench.task.wait()
        second = bench.run("restore", "-d", *words, preexec_fn=shut)[0]
        held = [os.readlink(f"/proc/{bench.task.pid}/fd/{fd}") for fd in range(3)]
        return first, second, held, bench.state()

    same(both, look)


def replace_task(bench, **more):
    """Another task than the fixture's."""
    bench.task.kill()
    bench.task.wait()
    bench.task = subprocess.Popen(
        ["sleep", "1000"], stdin=subprocess.DEVNULL, start_new_session=True, **more
    )


def test_a_pipe_that_leads_outside(both):
    def look(bench):
        reading, writing = os.pipe()
        replace_task(bench, stdout=writing, stderr=subprocess.DEVNULL)
        key = f"pipe[{os.fstat(writing).st_ino}]"
        os.close(writing)
        first = bench.run("dump", "-t", "PID", "-D", "img", *SKIP)[0]
        bench.task.wait()
        again, other = os.pipe()
        given = ["--inherit-fd", f"fd[{other}]:{key}"]
        second = bench.run("restore", "-d", "-D", "img", *given, pass_fds=[other])[0]
        wanted = os.readlink(f"/proc/self/fd/{other}")
        held = os.readlink(f"/proc/{bench.task.pid}/fd/1") == wanted
        end(bench)
        third = bench.run("restore", "-d", "-D", "img")[0]
        alone = os.readlink(f"/proc/{bench.task.pid}/fd/1") == wanted
        for fd in (reading, again, other):
            os.close(fd)
        assert held or bench.command != OURS  # theirs makes a pipe of its own here
        return first, second, third, alone

    same(both, look)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_file_is_given_by_its_path(both, slash):
    def look(bench):
        path, other = bench.folder / "img" / "old", bench.folder / "img" / "new"
        other.touch()
        with path.open("w") as out:
            replace_task(bench, stdout=out, stderr=subprocess.DEVNULL)
        first = bench.run("dump", "-t", "PID", "-D", "img", *SKIP)[0]
        bench.task.wait()
        with other.open() as given:
            words = ["--inherit-fd", f"fd[{given.fileno()}]:{slash}{str(path)[1:]}"]
            second = bench.run("restore", "-d", "-D", "img", *words, pass_fds=[given.fileno()])[0]
        return first, second, Path(os.readlink(f"/proc/{bench.task.pid}/fd/1")).name

    same(both, look)


def test_a_file_is_external(both):
    def look(bench):
        path, other = bench.folder / "img" / "old", bench.folder / "img" / "new"
        with path.open("w") as out:
            replace_task(bench, stdout=out, stderr=subprocess.DEVNULL)
            mount = Path(f"/proc/self/fdinfo/{out.fileno()}").read_text().split("mnt_id:")[1]
        name = f"file[{int(mount.split()[0]):x}:{path.stat().st_ino:x}]"
        first = bench.run("dump", "-t", "PID", "-D", "img", *SKIP, "--external", name)[0]
        bench.task.wait()
        path.unlink()
        with other.open("w") as given:
            words = ["--inherit-fd", f"fd[{given.fileno()}]:{name}"]
            second = bench.run("restore", "-d", "-D", "img", *words, pass_fds=[given.fileno()])[0]
        held = Path(os.readlink(f"/proc/{bench.task.pid}/fd/1")).name
        end(bench)
        third = bench.run("restore", "-d", "-D", "img")[0]
        return first, second, held, third, bench.state()

    same(both, look)


def test_lazy_pages(both):
    def look(bench):
        assert bench.run("dump", "-t", "PID", "-D", "img", *SKIP)[0] == 0
        bench.task.wait()
        alone = bench.run("restore", "-d", "-D", "img", "--lazy-pages")[0]
        end(bench)
        daemon = subprocess.Popen(
            [*bench.command, "lazy-pages", "-D", "img", "-o", "lazy.log"],
            cwd=bench.folder,
            stdin=subprocess.DEVNULL,
        )
        socket = bench.folder / "img" / "lazy-pages.socket"
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)
        done = bench.run("restore", "-d", "-D", "img", "--lazy-pages")[0]
        return alone, done, bench.state(), daemon.wait(20)

    same(both, look)

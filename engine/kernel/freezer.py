# SPDX-License-Identifier: Apache-2.0
"""The cgroup freezer: stop several cgroups as one cut, and never leave them stopped.

    with frozen([cgroup_a, cgroup_b]) as cut:
        ...seize the tasks...
        cut.thaw()        # or by leaving the block

Facts: v1 has ``freezer.state`` (FROZEN, THAWED; reads FREEZING while it waits for tasks,
and a read advances it), v2 has ``cgroup.freeze`` (1, 0) and the word ``frozen`` in
``cgroup.events``. Both act on the whole subtree. A task that a v1 freezer holds completes
no ptrace stop until it is thawed.

A watchdog process is started before the freeze. It waits on a pipe whose other end is ours
alone; when we die in any way the kernel closes that end and the watchdog thaws. It is a
shell that uses builtins only, started by exec, because a fork of a process with threads may
not run Python.

Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst (v6.18).
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torpor.engine.errors import Denied, Error, KernelError, Refused, Timeout, Vanished

_WATCHDOG = """trap '' HUP INT TERM QUIT
IFS= read -r word
[ "$word" = done ] && exit 0
while [ $# -gt 0 ]; do printf %s "$1" > "$2"; shift 2; done
"""
_FIRST_PAUSE_S = 0.00005
_LONGEST_PAUSE_S = 0.002
_KICK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Control:
    """The files of one cgroup's freezer, the same for v1 and v2."""

    cgroup: Path
    write_path: Path
    state_path: Path
    freeze_word: str
    thaw_word: str
    frozen_line: str

    def is_asked(self) -> bool:
        """Whether somebody asked this very cgroup (not one above) to be frozen."""
        if self.freeze_word == "1":
            return _read(self.write_path).strip() == "1"
        return _read(self.cgroup / "freezer.self_freezing").strip() == "1"

    def is_frozen(self) -> bool:
        return self.frozen_line in _read(self.state_path).splitlines()


class Frozen:
    """Cgroups that are frozen now; `thaw` may be called more than once."""

    def __init__(self, controls: Sequence[_Control], watchdog: "_Watchdog | None") -> None:
        self._controls = tuple(controls)
        self._watchdog = watchdog
        self._is_thawed = False

    @property
    def cgroups(self) -> tuple[Path, ...]:
        """The directories, as they were given."""
        return tuple(control.cgroup for control in self._controls)

    def thaw(self) -> None:
        """Let the tasks run; a cgroup that is gone is no error."""
        if self._is_thawed:
            return
        failed: Error | None = None
        for control in self._controls:
            try:
                _write(control.write_path, control.thaw_word)
            except Vanished:
                continue
            except Error as error:
                failed = error
        self._is_thawed = True
        if self._watchdog is not None:
            self._watchdog.end(thaw=failed is not None)
        if failed is not None:
            raise failed


class _Watchdog:
    """The process that thaws when our end of the pipe closes."""

    def __init__(self, controls: Sequence[_Control]) -> None:
        import subprocess  # slow to import, not always needed

        arguments = [
            text for control in controls for text in (control.thaw_word, str(control.write_path))
        ]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "torpor-thaw", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise if it does not watch any more."""
        if self._process.poll() is not None:
            raise Error(
                "the watchdog of the freezer ended",
                subject=f"process {self.pid}",
                cause=f"status {self._process.returncode}",
                remedy="see whether the machine is short of memory, then try again",
            )

    def end(self, *, thaw: bool) -> None:
        """Send it away; with ``thaw`` it thaws first, as if we had died."""
        pipe = self._process.stdin
        if pipe is not None:
            with suppress(BrokenPipeError):
                if not thaw:
                    pipe.write(b"done\n")
                pipe.close()
        self._process.wait()


@contextmanager
def frozen(cgroups: Sequence[Path], *, timeout_s: float = 10.0) -> Iterator[Frozen]:
    """Freeze all ``cgroups`` as one cut; thaws on the way out, however it is left.

    All are told to freeze before the first is waited for. With no cgroups nothing happens.

    Raises:
        Refused: one is frozen already by somebody else, or holds this process.
        Vanished: one does not exist.
        Denied: no right to freeze it.
        Timeout: tasks did not freeze (in uninterruptible sleep, for one).
    """
    controls = [_control(path) for path in dict.fromkeys(cgroups)]
    if not controls:
        yield Frozen((), None)
        return
    for control in controls:
        _check(control)
    watchdog = _Watchdog(controls)
    cut = Frozen(controls, watchdog)
    try:
        for control in controls:
            _write(control.write_path, control.freeze_word)
        deadline_s = time.monotonic() + timeout_s
        for control in controls:
            _wait(control, deadline_s, timeout_s)
        watchdog.check()
        yield cut
    finally:
        cut.thaw()


def is_frozen(cgroup: Path) -> bool:
    """Whether the cgroup was asked to freeze by a write to itself."""
    return _control(cgroup).is_asked()


def thaw_leftover(cgroup: Path) -> bool:
    """Thaw a cgroup that an earlier life of ours may have left frozen; True if it was."""
    try:
        control = _control(cgroup)
        if not control.is_asked():
            return False
        _write(control.write_path, control.thaw_word)
    except Vanished:
        return False
    return True


def _control(cgroup: Path) -> _Control:
    path = cgroup.absolute()
    if (path / "freezer.state").exists():
        state = path / "freezer.state"
        return _Control(
            cgroup=cgroup,
            write_path=state,
            state_path=state,
            freeze_word="FROZEN",
            thaw_word="THAWED",
            frozen_line="FROZEN",
        )
    if (path / "cgroup.freeze").exists():
        return _Control(
            cgroup=cgroup,
            write_path=path / "cgroup.freeze",
            state_path=path / "cgroup.events",
            freeze_word="1",
            thaw_word="0",
            frozen_line="frozen 1",
        )
    if path.is_dir():
        raise Refused(
            "not a cgroup that can be frozen",
            subject=str(cgroup),
            cause="neither freezer.state nor cgroup.freeze is in it",
            remedy="name a cgroup below the root of a v1 freezer or of a v2 hierarchy",
        )
    raise Vanished("the cgroup does not exist", subject=str(cgroup), remedy="try again")


def _check(control: _Control) -> None:
    if control.is_asked():
        raise Refused(
            "the cgroup is frozen already",
            subject=str(control.cgroup),
            cause="somebody else (a pause of the container runtime?) froze it",
            remedy="resume the container, then try again",
        )
    own = str(os.getpid())
    for root, _, files in os.walk(control.cgroup):
        if "cgroup.procs" in files and own in _read(Path(root, "cgroup.procs")).split():
            raise Refused(
                "the cgroup holds the process that would freeze it",
                subject=str(control.cgroup),
                remedy="run the dump from outside of that cgroup",
            )


def _wait(control: _Control, deadline_s: float, timeout_s: float) -> None:
    pause_s = _FIRST_PAUSE_S
    kick_at_s = time.monotonic() + _KICK_EVERY_S
    while not control.is_frozen():
        now_s = time.monotonic()
        if now_s > deadline_s:
            raise Timeout(
                f"tasks did not freeze within {timeout_s:g} s",
                subject=str(control.cgroup),
                cause=f"state is {_read(control.state_path).split()}",
                remedy="look for tasks in state D in it (a hanging disk or network mount?)",
            )
        if now_s > kick_at_s:
            # A fork that raced the freeze can leave a v1 cgroup in FREEZING for good.
            _write(control.write_path, control.freeze_word)
            kick_at_s = now_s + _KICK_EVERY_S
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise _translate(error, "read", path) from error


def _write(path: Path, word: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, word.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise _translate(error, f"write {word} to", path) from error


def _translate(error: OSError, verb: str, path: Path) -> Error:
    if isinstance(error, FileNotFoundError) or error.errno == errno.ENODEV:
        return Vanished("the cgroup is gone", subject=str(path.parent), remedy="try again")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return Denied(
            f"may not {verb} the freezer",
            subject=str(path),
            cause=error.strerror or "",
            remedy="run as root, with the cgroup file systems mounted writable",
        )
    return KernelError(
        f"could not {verb} the freezer", errno=error.errno or errno.EIO, subject=str(path)
    )

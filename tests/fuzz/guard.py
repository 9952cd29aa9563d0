# SPDX-License-Identifier: Apache-2.0
"""What may not happen while mutated input is read: hanging, hoarding memory, touching files.

An audit hook sees every file that Python code opens for writing, makes, renames or removes, every
program it starts and every connection it makes. Inside of `watched`, all that is an offence but in
the folder that is given; so is opening for reading what is neither below it nor in /proc/self.
"""

import os
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

LONGEST_S = 20
MOST_GROWTH_KIB = 700 << 10
"""Of the resident memory, over the whole of a run: what is read is a few MiB."""
FIRST, SECOND, BOTH = slice(1), slice(1, 2), slice(2)
PATHS = {
    "os.mkdir": FIRST, "os.remove": FIRST, "os.rmdir": FIRST, "os.rename": BOTH, "os.link": BOTH,
    "os.symlink": SECOND, "os.truncate": FIRST, "os.chmod": FIRST, "os.chown": FIRST,
    "shutil.rmtree": FIRST,
}  # fmt: skip
"""Events that change files, and which of their arguments are paths."""
NEVER = frozenset(("subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "os.system",
                   "socket.connect", "socket.bind", "os.kill", "os.putenv"))  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
READABLE = ("/proc/", "/usr/", "/dev/null", "/etc/localtime", sys.prefix,
            str(Path(__file__).parents[2]))  # fmt: skip


class Offence(BaseException):
    """Not an Exception, so that nothing takes it for an error of the input."""


class _Watch:
    folder: str | None = None
    installed = False

    def __call__(self, event, arguments):
        if self.folder is None:
            return
        if event in NEVER:
            raise Offence(f"{event}{arguments}")
        if event == "open":
            self._opened(*arguments)
        for path in arguments[PATHS.get(event, slice(0))]:
            self._named(event, path, ())

    def _opened(self, path, _, flags):
        flags = flags if isinstance(flags, int) else 0
        self._named(f"open with {flags:#o}", path, () if flags & WRITING else READABLE)

    def _named(self, event, path, besides):
        if isinstance(path, int):
            return
        text = os.fsdecode(path)
        if "/" not in text and text not in ("", "..", "."):
            return  # a plain name, relative to a directory that was opened
        whole = os.path.normpath(text)
        if not whole.startswith((str(self.folder), "/proc/self/fd/", *besides)):
            raise Offence(f"{event}: {text!r}")


_WATCH = _Watch()


@contextmanager
def watched(folder: Path):
    """The code inside may write below ``folder`` only."""
    if not _WATCH.installed:
        sys.addaudithook(_WATCH)
        _WATCH.installed = True
    _WATCH.folder = str(folder)
    try:
        yield
    finally:
        _WATCH.folder = None


@contextmanager
def timed():
    """Raises Offence when what is inside takes too long."""

    def hangs(*_):
        raise Offence(f"took longer than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, hangs)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_kib() -> int:
    """Most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def open_descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))

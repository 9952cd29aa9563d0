# SPDX-License-Identifier: Apache-2.0
"""What a workload of files does: set up, say so, wait while it is moved, check itself.

In the directory of its first argument it writes `ready`, waits for `go`, and writes `result`:
`ok`, or what was wrong.
"""

import ctypes
import os
import sys
import time
import traceback
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
STATES = {}


class LackingError(Exception):
    """What of the machine a state would need."""


def state(body):
    """A state of this program, chosen by its name as the second argument."""
    STATES[body.__name__] = body
    return body


def chosen():
    """Run the state that the command line names."""
    workload(STATES[sys.argv[2]])


def call(name, *arguments):
    """A function of the C library; its result, OSError where that is -1."""
    result = getattr(LIBC, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def number(call, *arguments):
    """Number of the error that a call must end with."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    raise AssertionError(f"{call} does not fail")


def child(body):
    """Fork a task that runs ``body`` and ends with what it returns, or 99 when that fails."""
    pid = os.fork()
    if pid:
        return pid
    try:
        code = body() or 0
    except BaseException:  # noqa: BLE001 (it is the exit code)
        traceback.print_exc()
        code = 99
    os._exit(code)


def ended(pid):
    """Exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def await_file(path):
    """Until another task has made it."""
    while not path.exists():
        time.sleep(0.01)


def workload(body):
    """Run a generator: what comes before its only yield is the set-up, the rest the check."""
    place = Path(sys.argv[1])
    text = "ok"
    steps = body(place)
    try:
        next(steps)
        _put(place, "ready", str(os.getpid()))
    except LackingError as error:
        _put(place, "ready", f"lacking: {error}")
        steps = iter(())
    while not (place / "go").exists():
        time.sleep(0.02)
    try:
        next(steps, None)
    except BaseException:  # noqa: BLE001 (it is the result)
        text = traceback.format_exc()
    _put(place, "result", text)


def _put(place, name, text):
    part = place / f"{name}.part"
    part.write_text(text)
    part.rename(place / name)

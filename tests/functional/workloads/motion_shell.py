# SPDX-License-Identifier: Apache-2.0
"""A shell with job control on a terminal that is never idle: pipelines, jobs stopped and continued.

Protocol of `motion_base.h`: the number of rounds is on the board.
"""

import mmap
import os
import pty
import struct
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
(folder / "board").write_bytes(bytes(512))
board = mmap.mmap(os.open(folder / "board", os.O_RDWR), 512)
struct.pack_into("<Q", board, 0, 1)


def finish(text):
    (folder / "part").write_text(text)
    (folder / "part").rename(folder / "result")
    sys.exit(text != "ok")


shell, terminal = pty.fork()
if shell == 0:
    os.execve("/bin/bash", ["bash", "--norc", "-i"], {"PATH": "/usr/bin:/bin", "PS1": ""})


class Reader:
    """What the shell prints."""

    kept = b""

    def until(self, mark):
        while mark not in self.kept:
            try:
                self.kept += os.read(terminal, 4096)
            except OSError as error:
                finish(f"the terminal gives {error} after {self.kept!r}")
        before, self.kept = self.kept.split(mark, 1)
        return before.decode(errors="replace")


def ask(line, number):
    os.write(terminal, f"{line}; echo at=$((1000+{number}))=\n".encode())
    return told.until(f"at={1000 + number}=".encode())


told = Reader()
ask("stty -echo; set -m", 0)
(folder / "ready").touch()
count = 0
while not (folder / "go").exists():
    count += 1
    said = ask(f"echo is=$(echo {count} | tr 0-9 a-j | cat)=", count)
    expected = str(count).translate(str.maketrans("0123456789", "abcdefghij"))
    if f"is={expected}=" not in said:
        finish(f"round {count}: {said!r}")
    said = ask("sleep 1000 & kill -STOP %1; jobs -l; kill -CONT %1", count)
    said += ask("kill %1; wait %1 2>/dev/null; echo code=$?=", count)
    if "code=143=" not in said:
        finish(f"round {count}: {said!r}")
    struct.pack_into("<Q", board, 16, count)
os.write(terminal, b"exit\n")
deadline = time.monotonic() + 10
while os.waitpid(shell, os.WNOHANG)[0] == 0:
    if time.monotonic() > deadline:
        finish("the shell does not end")
    time.sleep(0.01)
finish("ok")

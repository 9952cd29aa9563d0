# SPDX-License-Identifier: Apache-2.0
"""Programs with a terminal of their own: tmux with vim, a shell with jobs under script(1)."""

import subprocess
from collections.abc import Generator

from tests.programs.stage import Stage

Steps = Generator[None, None, None]


def tmux(stage: Stage) -> Steps:
    """A tmux server with vim in one window and a shell in another; keys are sent from outside."""
    socket, folder = stage.folder / "tmux", stage.folder
    (folder / "text").write_text("first line\n")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "screen", "LANG": "C.UTF-8",
                   "HOME": str(folder), "SHELL": "/bin/sh"}  # fmt: skip

    def do(*words: str) -> str | None:
        done = subprocess.run(
            ["tmux", "-N", "-S", socket, *words], capture_output=True, text=True, check=False,
            env=environment, timeout=20,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else None

    def screen(window: str) -> str:
        return do("capture-pane", "-p", "-t", window) or ""

    def see(window: str, text: str) -> None:
        stage.eventually(lambda: text in screen(window) or None, f"no {text!r} in {window}")

    (folder / "conf").write_text("set -g exit-empty off\n")
    stage.run("tmux", "-S", socket, "-D", "-f", folder / "conf", environment=environment)
    stage.eventually(lambda: do("new-session", "-d", "-s", "s", "-n", "sh", "sh"), "no server")
    do("new-window", "-d", "-t", "s:", "-n", "vi", "vi", str(folder / "text"))
    see("s:vi", "first line")
    do("send-keys", "-t", "s:sh", "n=41; cd /usr; sleep 1000 &", "Enter")
    do("send-keys", "-t", "s:vi", "o", "second line")
    see("s:vi", "second line")
    yield
    see("s:vi", "second line")
    do("send-keys", "-t", "s:vi", " and more", "Escape")
    see("s:vi", "second line and more")
    do("send-keys", "-t", "s:sh", "echo $((n + 1)) $PWD", "Enter")
    see("s:sh", "42 /usr")
    yield
    do("send-keys", "-t", "s:vi", ":wq", "Enter")
    stage.eventually(
        lambda: "second line and more" in (stage.text("text") or "") or None, "unsaved"
    )
    do("send-keys", "-t", "s:sh", "jobs; tty", "Enter")
    see("s:sh", "sleep 1000")


def script(stage: Stage) -> Steps:
    """script(1) holds a terminal on which a shell runs a pipeline in the foreground."""
    folder = stage.folder
    stage.shell(
        f"cd {folder}; mkfifo say; exec 3<>say; script -qfc 'bash --norc -i' typescript < say; wait"
    )

    def tell(text: str) -> None:
        (folder / "say").write_text(text + "\n")

    def see(text: str) -> None:
        stage.eventually(lambda: text in (stage.text("typescript") or "") or None, f"no {text}")

    stage.eventually(lambda: (folder / "say").is_fifo() or None, "no fifo")
    tell("x=20; echo begin-$x")
    see("begin-20")
    tell("cat > kept")
    tell("a line")
    stage.eventually(lambda: stage.text("kept"), "cat does not run")
    yield
    tell("another")
    stage.eventually(lambda: (stage.text("kept") or "").count("\n") == 2 or None, "cat is deaf")
    yield
    tell("\x04echo end-$((x + 1)); ps -o stat= -p $$")
    see("end-21")


PROGRAMS = {"tmux with vim": tmux, "bash under script": script}

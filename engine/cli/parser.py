# SPDX-License-Identifier: Apache-2.0
"""Options of the `torpor` command. Where CRIU has an option for the same, it has the same name.

argparse and not a richer library: it is imported in 10 ms, which is most of the start.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from torpor.engine.inherit import parse_inherit
from torpor.engine.options import ClockPolicy, Lazy, MemoryWay
from torpor.engine.text import parse_size

DESCRIPTION = "Checkpoint a tree of processes into image files, and bring it back."
EPILOG = """\
Examples:
  torpor plan 4711                    what a dump of task 4711 would save or refuse
  torpor dump 4711 -D /tmp/images     dump it and its children, and end them
  torpor dump 4711 -D /tmp/images -R  the same, and let them run on
  torpor show /tmp/images             what is in the images
  torpor plan /tmp/images             what a restore would do, one operation a line
  torpor restore -D /tmp/images -d    bring the tree back
  torpor check                        what works on this machine, with which rights

`torpor COMMAND --help` has the options of a command. Pre-dumps, page servers and all else that
CRIU's command line has: `criu --help`.
"""
ABOUT = {
    "dump": """\
Stop a task and all that descend from it, write their state to a directory, and end them, or let
them run on with -R. What cannot be taken is told of before anything is done; then they run on.

  torpor dump 4711 -D /tmp/images""",
    "restore": """\
Bring a tree back from the images of a dump, torpor's or CRIU's. Its tasks get their old pids, which
have to be free.

  torpor restore -D /tmp/images -d""",
    "show": """\
Print what images hold: the tree of tasks, their memory, descriptors and sockets, and whether the
images are whole.

  torpor show /tmp/images""",
    "plan": """\
Of a PID: what a dump would save, and what it would refuse and why; the task is not touched. Of
images: what a restore would do, one operation a line; nothing is done.

  torpor plan 4711
  torpor plan /tmp/images""",
    "check": """\
Try what this kernel and our rights allow, rung by rung: as anybody, with two capabilities, as root.
Each line tells what works or what is missing, and what needs it.

  torpor check""",
}
"""What stands above the options of a command."""
VERBOSITY = re.compile(r"-(v+)(\d?)")
DEFAULT_VERBOSITY = 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; exits with 2 when the command line is wrong."""
    parser = build()
    options = parser.parse_args(normalised(arguments))
    if options.command is None:
        parser.print_help()
        sys.exit(2)
    if options.command == "dump" and (options.pid is None) == (options.tree is None):
        parser.error("dump: give one PID, as an argument or by -t")
    if options.command in ("show", "plan") and (options.target is None) == (options.dir is None):
        parser.error(f"{options.command}: give one directory{_or_pid(options.command)}")
    return options


def normalised(arguments: Sequence[str]) -> list[str]:
    """`-v4` and `-vv` as `--verbosity=4`; what follows `--` stays."""
    result: list[str] = []
    for i, word in enumerate(arguments):
        if word == "--":
            return [*result, *arguments[i:]]
        match = VERBOSITY.fullmatch(word)
        if match is None:
            result.append(word)
        else:
            level = int(match[2]) if match[2] else DEFAULT_VERBOSITY + len(match[1])
            result.append(f"--verbosity={level}")
    return result


def build() -> argparse.ArgumentParser:
    """The parser, with a sub-parser for each command."""
    parser = argparse.ArgumentParser(
        prog="torpor", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    common.add_argument(
        "--verbosity", type=int, default=DEFAULT_VERBOSITY, metavar="N",
        help="1 errors, 2 warnings (default), 3 a line per phase, 4 a line per object; "
        "short: -vN, -v, -vv",
    )  # fmt: skip
    common.add_argument("-o", "--log-file", type=Path, metavar="FILE",
                        help="write the log there, in CRIU's shape")  # fmt: skip
    common.add_argument("-W", "--work-dir", type=Path, metavar="DIR",
                        help="where relative names of logs and pid files start")  # fmt: skip

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, parents=[common], help=text, description=ABOUT[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    _dump(add("dump", "write a tree of tasks to images"))
    _restore(add("restore", "bring a tree back"))
    _show(add("show", "print what images hold"))
    does = "of a PID: what a dump would save or refuse; of images: what a restore would do"
    _plan(add("plan", does))
    add("check", "what works on this machine, and why not")
    return parser


def _dump(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pid", nargs="?", type=_pid, metavar="PID", help="root of the tree")
    add("-t", "--tree", type=_pid, metavar="PID", help="the same as PID")
    add(
        "-D",
        "--images-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="where to write; a directory without images, or none yet",
    )
    _memory(parser)
    _shared(parser)
    add(
        "--freeze-cgroup",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="freezer (v1) or cgroup (v2) directory that holds the tree; may be repeated",
    )
    add(
        "--ghost-limit",
        type=_size,
        default=64 << 20,
        metavar="SIZE",
        help="largest deleted file to save (default 64M)",
    )
    _timeout(parser)


def _memory(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-R", "--leave-running", action="store_true", help="let the tasks run on")
    add(
        "--memory",
        choices=[way.value for way in MemoryWay],
        default=MemoryWay.AUTO.value,
        help="how memory is taken (default auto); see docs/performance.md",
    )


def _restore(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-D", "--images-dir", type=Path, required=True, metavar="DIR", help="the images")
    add(
        "-d",
        "--restore-detached",
        action="store_true",
        help="return when the tree runs; otherwise wait for its root and exit as it does",
    )
    add("--plan", action="store_true", help="print what would be done, and do nothing")
    add(
        "--lazy",
        nargs="?",
        const=Lazy.ON.value,
        default=Lazy.OFF.value,
        choices=[one.value for one in Lazy],
        help="fill large memory while the tree runs already; auto: when there is very much of it",
    )
    add(
        "--clocks",
        default=ClockPolicy.AUTO.value,
        choices=[one.value for one in ClockPolicy],
        help="continue: CLOCK_MONOTONIC and CLOCK_BOOTTIME go on where the tree saw them last; "
        "machine: they are those of this machine; auto: continue, with the rights to it",
    )
    add("-j", "--shell-job", action="store_true", help="give the tree this terminal")
    add("--pidfile", type=Path, metavar="FILE", help="write the pid of the root there")
    add(
        "--inherit-fd",
        type=_inherited,
        action="append",
        default=[],
        metavar="fd[N]:NAME",
        help="our descriptor N stands for the tree's NAME (`pipe:[123]`); may be repeated",
    )
    _timeout(parser)


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", type=Path, metavar="DIR", help="images")
    parser.add_argument("-D", "--images-dir", dest="dir", type=Path, metavar="DIR",
                        help="the same as DIR")  # fmt: skip
    parser.add_argument("--no-verify", action="store_true",
                        help="do not check the digests of memory pages")  # fmt: skip


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="PID|DIR",
                        help="a number is a PID; write ./123 for a directory")  # fmt: skip
    parser.add_argument("-D", "--images-dir", dest="dir", metavar="DIR", help="the same as DIR")
    _memory(parser)
    _shared(parser)
    parser.add_argument("--ghost-limit", type=_size, default=64 << 20, metavar="SIZE",
                        help="largest deleted file to save (default 64M)")  # fmt: skip


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-j", "--shell-job", action="store_true",
                        help="the tree belongs to a shell on a terminal")  # fmt: skip
    parser.add_argument(
        "--tcp-close", action="store_true",
        help="take TCP connections to the outside; they come back closed, as by a reset",
    )  # fmt: skip


def _timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS",
                        help="give up after that long (default 60)")  # fmt: skip


def _pid(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("a PID is a positive number")
    return number


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a size: {text}") from error


def _inherited(text: str) -> tuple[str, int]:
    try:
        return parse_inherit(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _or_pid(command: str) -> str:
    return " or one PID" if command == "plan" else ""

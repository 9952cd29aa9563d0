# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from torpor.engine import version
from torpor.engine.cli import failure, output, parser, session
from torpor.engine.cli.entry import main
from torpor.engine.errors import BadImage, Findings, Refused

LISTING = (
    "import sys; from torpor.engine.{module} import main;"
    "\ntry: main({arguments!r})"
    "\nexcept SystemExit: pass"
    "\nprint(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
)
HEAVY = (
    "google", "rich", "kubernetes", "grpc", "cffi", "_cffi_backend", "logging", "asyncio",
    "subprocess", "importlib.metadata", "email", "torpor.engine._native", "dataclasses", "ctypes",
)  # fmt: skip
ALLOWED = {
    "torpor", "torpor.engine", "torpor.engine.cli", "torpor.engine.cli.entry",
    "torpor.engine.errors", "torpor.engine.version", "torpor.engine.criu",
    "torpor.engine.criu.entry", "torpor.engine.stdio",
}  # fmt: skip


def loaded(module, *arguments):
    code = LISTING.format(module=module, arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split("\n"))


@pytest.mark.parametrize("module", ["cli", "criu"])
def test_version_loads_next_to_nothing(module):
    names = loaded(module, "--version")
    assert {n for n in names if n.startswith("torpor")} <= ALLOWED
    assert [h for h in HEAVY if h in names] == []


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("cli", ["dump", "--help"]),
        ("criu", ["--help"]),
        ("cli", ["show", "--help"]),
    ],
)
def test_help_needs_no_protobuf_and_no_rich(module, arguments):
    names = loaded(module, *arguments)
    assert not {"google.protobuf", "rich", "torpor.engine._native", "grpc"} & names


NOT_FOR_A_DUMP = (
    "asyncio", "concurrent.futures", "multiprocessing", "ssl", "subprocess", "argparse", "rich",
    "kubernetes", "grpc", "email", "http", "urllib.request", "unittest", "uuid",
    "torpor.engine.inspect", "torpor.engine.criu.usage", "torpor.engine.criu.features",
    "torpor.engine.kernel.features",
)  # fmt: skip


@pytest.mark.parametrize("command", ["dump", "restore", "pre-dump"])
def test_what_a_command_of_criu_does_not_load(command, tmp_path):
    words = [command, "-D", str(tmp_path), "-v0"]
    names = loaded("criu", *words, *(["-t", "4194303"] if "dump" in command else []))
    assert [one for one in NOT_FOR_A_DUMP if one in names] == []


NEVER = ("asyncio", "concurrent.futures", "multiprocessing", "kubernetes", "grpc", "http",
         "urllib.request", "unittest", "pydoc", "importlib.metadata", "importlib.resources",
         "tempfile", "email", "rich")  # fmt: skip
"""What no command that a runtime waits for needs."""


@pytest.mark.parametrize(
    ("module", "words"),
    [("cli", ["--version"]), ("cli", ["check", "--json"]), ("criu", ["check"]),
     ("criu", ["check", "--all"]), ("criu", ["cpuinfo", "check"]), ("criu", ["swrk", "999"]),
     ("criu", ["dump", "-t", "4194303", "-v0"]), ("criu", ["restore", "-v0"])],
)  # fmt: skip
def test_what_no_command_loads(module, words, tmp_path):
    place = ["-D", str(tmp_path)] if module == "criu" else []
    names = loaded(module, *words, *place)
    assert [one for one in NEVER if one in names] == []


def test_version_is_that_of_the_package():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == version.VERSION


def test_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"torpor {version.VERSION}\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        ([], 2),
        (["dump", "-D", "x"], 2),
        (["dump", "1", "-t", "2", "-D", "x"], 2),
        (["dump", "0", "-D", "x"], 2),
        (["plan"], 2),
        (["show", "a", "-D", "b"], 2),
        (["dump", "1", "-D", "x", "--ghost-limit", "many"], 2),
        (["restore", "-D", "x", "--inherit-fd", "3"], 2),
        (["nonsense"], 2),
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments, exit_code, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == exit_code
    assert "torpor" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ([], 2),
        (["-v"], 3),
        (["-vv"], 4),
        (["-v4"], 4),
        (["-v0"], 0),
        (["--verbosity=1"], 1),
    ],
)
def test_verbosity_is_written_as_for_criu(words, level):
    assert parser.parse(["show", "x", *words]).verbosity == level


def test_criu_names_mean_the_same():
    from torpor.engine.cli.dump import asked
    from torpor.engine.options import After, TcpPolicy

    long = parser.parse(
        [
            "dump",
            "--tree",
            "7",
            "--images-dir",
            "d",
            "--leave-running",
            "--tcp-close",
            "--shell-job",
            "--ghost-limit",
            "1M",
            "--freeze-cgroup",
            "/c",
            "--timeout",
            "3",
        ]
    )
    short = parser.parse(
        [
            "dump",
            "7",
            "-D",
            "d",
            "-R",
            "--tcp-close",
            "-j",
            "--ghost-limit",
            "1048576",
            "--freeze-cgroup",
            "/c",
            "--timeout",
            "3",
        ]
    )
    assert asked(long) == asked(short)
    assert asked(long).after is After.CONTINUE
    assert asked(long).tcp is TcpPolicy.CLOSE
    assert asked(long).freezer_cgroups == (Path("/c"),)


def test_inherited_descriptors_take_both_spellings():
    from torpor.engine.cli.restore import asked

    options = parser.parse(
        [
            "restore",
            "-D",
            "d",
            "--inherit-fd",
            "fd[3]:pipe:[12]",
            "--inherit-fd",
            "fd[4]:socket[13]",
            "--inherit-fd",
            "fd[5]:tmp/x",
        ]
    )
    assert asked(options).inherit == {"pipe:[12]": 3, "socket:[13]": 4, "tmp/x": 5}


def test_errors_are_told_with_cause_and_remedy(capsys, tmp_path):
    assert main(["show", str(tmp_path)]) == BadImage.exit_code
    told = capsys.readouterr()
    assert told.out == ""
    assert f"bad image: {tmp_path}: not an image directory\n  cause: " in told.err


def test_errors_are_one_json_object(capsys, tmp_path):
    assert main(["show", str(tmp_path), "--json"]) == 7
    told = json.loads(capsys.readouterr().out)
    assert told["reason"] == "BadImage"
    assert told["subject"] == str(tmp_path)


def test_every_finding_is_told():
    error = Findings(
        (
            Refused(
                "ring state cannot be read back",
                subject="task 41, fd 9 -> io_uring",
                remedy="close the ring",
            ),
            Refused("a shadow stack", subject="task 42"),
        )
    )
    assert failure.lines(error) == [
        "refused: task 41, fd 9 -> io_uring: ring state cannot be read back",
        "  remedy: close the ring",
        "refused: task 42: a shadow stack",
    ]
    assert [i["subject"] for i in failure.as_dict(error)["items"]] == [
        "task 41, fd 9 -> io_uring",
        "task 42",
    ]


def test_a_log_file_has_the_error(tmp_path):
    options = parser.parse(["dump", "1", "-D", "x", "-o", "dump.log", "-W", str(tmp_path)])
    with pytest.raises(Refused), session.logging(options):
        raise Refused("no", subject="task 1")
    assert "Error (session:" in (tmp_path / "dump.log").read_text()


def test_waiting_gives_the_status_as_a_shell_says_it():
    for code, status in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)):
        child = subprocess.Popen([sys.executable, "-c", code])
        assert session.wait(child.pid) == status
        child.returncode = status


def test_json_takes_what_reports_hold():
    from torpor.engine.options import RestoreReport

    report = RestoreReport(
        pid=4,
        tasks=1,
        threads=2,
        memory_bytes=3,
        total_s=0.5,
        phases_s={"tasks": 0.1},
        warnings=("w",),
    )
    assert output.jsonable(report)["phases_s"] == {"tasks": 0.1}
    assert output.jsonable({"p": Path("/x"), 3: ("a",)}) == {"p": "/x", "3": ["a"]}


def test_the_page_names_every_option_and_exit_code():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    root = parser.build()
    (commands,) = [a for a in root._actions if getattr(a, "choices", None)]
    for command, sub in commands.choices.items():
        assert f"`torpor {command}" in page
        for action in sub._actions:
            for name in action.option_strings:
                assert name in ("-h", "--help") or f"`{name}" in page, (command, name)
    errors = __import__("torpor.engine.errors", fromlist=["Error"])
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    for code in {c.exit_code for c in classes}:
        assert f"\n| {code} | " in page


@pytest.mark.parametrize("front", ["cli", "criu"])
def test_too_little_memory_is_told(monkeypatch, capsys, front, tmp_path):
    def none_left(*_):
        raise MemoryError

    entry = importlib.import_module(f"torpor.engine.{front}.entry")
    monkeypatch.setattr(entry, "_run", none_left)
    assert entry.main(["restore", "-D", str(tmp_path)]) in (1, 8)
    assert "give torpor more memory" in capsys.readouterr().err

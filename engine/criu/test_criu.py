# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from torpor.engine import logs
from torpor.engine.criu import asked as asking
from torpor.engine.criu import joined, options, usage
from torpor.engine.criu.entry import RUN, command, main
from torpor.engine.criu.options import OPTIONS, Fate
from torpor.engine.criu.parse import parse
from torpor.engine.errors import Error, Refused
from torpor.engine.inherit import normal_name
from torpor.engine.options import After, RestoreReport, TcpPolicy

ERROR_LINE = re.compile(r"(\(\d\d\.\d{6}\) )?Error \(\w+:\d+\): .+")


@pytest.fixture(autouse=True)
def _quiet():
    yield
    logs.stop()


def test_the_page_about_compatibility_is_fresh():
    page = Path(__file__).parents[2] / "docs" / "criu-compat.md"
    assert page.read_text() == usage.document(), (
        "run: python -m torpor.engine.criu.usage > docs/criu-compat.md"
    )


def test_every_option_is_there_once_and_says_why():
    assert len({o.long for o in OPTIONS}) == len(OPTIONS)
    shorts = [o.short for o in OPTIONS if o.short]
    assert len(set(shorts)) == len(shorts)
    assert all(o.why for o in OPTIONS if o.fate is not Fate.DONE)


def test_options_of_criu_are_understood(tmp_path):
    line = parse(
        [
            "dump",
            "-t",
            "41",
            f"-D{tmp_path}",
            "-Rj",
            "-v4",
            "--tcp-close",
            "--ghost-limit=2M",
            "--freeze-cgroup",
            "/c",
            "--timeout",
            "7",
            "-l",
            "--manage-cgroups=ignore",
            "--ext-unix-sk",
            "-o",
            "dump.log",
        ]
    )
    asked = asking.dump_options(line)
    assert (asked.pid, asked.images_dir, asked.after) == (41, tmp_path, After.CONTINUE)
    assert (asked.tcp, asked.shell_job, asked.stop_timeout_s) == (TcpPolicy.CLOSE_ALL, True, 7)
    assert (asked.ghost_limit_bytes, asked.freezer_cgroups) == (2 << 20, (Path("/c"),))
    assert line.last("verbosity") == "4"


def test_what_is_not_said_is_as_with_criu(tmp_path):
    asked = asking.dump_options(parse(["dump", "--tree", "41", "--images-dir", str(tmp_path)]))
    assert (asked.after, asked.tcp, asked.stop_timeout_s) == (After.STOP, TcpPolicy.REFUSE, 10)
    assert asked.ghost_limit_bytes == 1 << 20
    wanted = asking.restore_options(
        parse(["restore", "-D", str(tmp_path), "-d", "--inherit-fd", "fd[0]:pipe[9]"])
    )
    assert wanted.inherit == {"pipe:[9]": 0}


@pytest.mark.parametrize(
    ("word", "level"),
    [
        ("-v", "3"),
        ("-vv", "4"),
        ("-vvvv", "6"),
        ("-v0", "0"),
        ("--verbosity=1", "1"),
    ],
)
def test_verbosity(word, level):
    assert parse(["check", word]).last("verbosity") == level


def test_a_timeout_is_for_the_stop_only():
    asked = asking.dump_options(parse(["dump", "-t", "7", "--timeout", "3"]))
    assert (asked.stop_timeout_s, asked.timeout_s) == (3, float("inf"))
    assert asking.dump_options(parse(["dump", "-t", "7"])).stop_timeout_s == 10


def test_flags_can_be_negated_and_words_come_in_any_order():
    assert not parse(["-R", "dump", "--no-leave-running"]).flag("leave_running")
    assert parse(["-t", "3", "dump"]).command == "dump"
    assert parse(["restore", "--exec-cmd", "--", "sh", "-R"]).program == ["sh", "-R"]


@pytest.mark.parametrize("name", ["tty[8800:1a]", "unix[77]", "file[1b:22]", "mnt[]:m"])
def test_what_may_be_external(name):
    assert parse(["dump", "--external", name]).all("external") == [name]
    with pytest.raises(Refused, match="external"):
        parse(["dump", "--external", "pony[/x]:y"])


@pytest.mark.parametrize("text", ["net", "net:", "user:7", "mnt:/proc/self/ns/mnt", "pony:3"])
def test_what_is_no_namespace_to_join(text):
    with pytest.raises(Refused, match="join-ns"):
        joined.places([text])


def test_a_namespace_to_join_is_a_pid_or_a_file():
    assert joined.places(["net:7", "uts:/x"]) == [("net", "/proc/7/ns/net"), ("uts", "/x")]
    assert joined.time_namespace(["net:7", "time:/x", "time:8"]) == Path("/proc/8/ns/time")
    assert joined.time_namespace(["net:7"]) is None


def test_long_names_may_be_cut():
    assert parse(["dump", "--leave-run", "--no-leave-run"]).values == {}
    assert parse(["dump", "--ghost-l=5"]).last("ghost_limit") == "5"
    with pytest.raises(Refused, match="ambiguous"):
        parse(["dump", "--leave"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dump", "-t"],
        ["dump", "--nonsense"],
        ["pony"],
        ["dump", "-Z"],
        ["dump", "more"],
        ["cpuinfo"],
        ["cpuinfo", "x"],
        ["dump", "-R=1"],
        ["restore", "--exec-cmd"],
        ["restore", "--exec-cmd", "-d", "--", "true"],
        ["dump", "--cpu-cap=x"],
    ],
)
def test_what_is_no_command_line_prints_the_usage(words, capsys):
    assert main(words) == 1
    assert capsys.readouterr().out.startswith("\nUsage:\n")


@pytest.mark.parametrize("word", ["show", "exec"])
def test_commands_that_criu_has_given_up(word, capsys):
    assert main([word]) == 255
    assert "deprecated" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["swrk", "3"],
        ["dump"],
        ["dump", "-t", "1", "--timeout", "x"],
        ["dump", "-t", "1", "--network-lock", "x"],
        ["restore", "-S"],
        ["restore", "--inherit-fd", "fd[99999]:pipe[3]"],
        ["dump", "-t", "one"],
        ["dump", "-t", "1", "-D", "/nonexistent"],
        ["check", "--feature", "x"],
        ["restore", "--cgroup-root", "freezer:relative"],
        ["restore", "--inherit-fd", "3"],
        ["dump", "-t", "1", "--ghost-limit", "much"],
    ],
)
def test_what_is_wrong_is_one_line_of_error_and_exit_code_1(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert all(ERROR_LINE.fullmatch(text) for text in told.err.splitlines())
    assert told.err


def test_the_log_is_in_the_work_directory_and_has_the_error(tmp_path, monkeypatch):
    from torpor.engine import api

    def refuse(*_, **__):
        raise Refused("ring state cannot be read back", subject="task 41, fd 9 -> io_uring")

    monkeypatch.setattr(api, "dump", refuse)
    (tmp_path / "w").mkdir()
    assert (
        main(
            [
                "dump",
                "-t",
                "1",
                "-D",
                str(tmp_path),
                "-W",
                str(tmp_path / "w"),
                "-o",
                "dump.log",
                "-v4",
            ]
        )
        == 1
    )
    lines = (tmp_path / "w" / "dump.log").read_text().splitlines()
    assert [("Error" in text) for text in lines] == [False, False, False, True, True]
    assert "task 41, fd 9 -> io_uring: ring state" in lines[-2]


def test_a_detached_restore_writes_the_pid_file_once(tmp_path, monkeypatch):
    from torpor.engine import api

    report = RestoreReport(pid=77, tasks=1, threads=1, memory_bytes=0, total_s=0, phases_s={})

    def make(wanted, progress):
        for stage in ("post-restore", "pre-resume"):
            wanted.at_stage(stage, report.pid)
        return report

    monkeypatch.setattr(api, "restore", make)
    words = ["restore", "-d", "-D", str(tmp_path), "--pidfile", "pid", "-o", "r.log", "-v3"]
    assert main(words) == 0
    assert (tmp_path / "pid").read_text() == "77"
    assert "Restore finished successfully" in (tmp_path / "r.log").read_text()
    assert main(words) == 1


def test_every_command_is_there():
    taken = {name for name, why in options.COMMANDS.items() if not why}
    assert {name.split()[0] for name in RUN} == taken
    assert all(callable(command(name)) for name in RUN)


def test_names_of_descriptors():
    assert normal_name("pipe[12]") == "pipe:[12]"
    assert normal_name("/memfd:x") == "/memfd:x"
    assert issubclass(Refused, Error)


def test_each_option_is_in_one_part_of_the_help():
    named = sorted(name for names in usage.TOPICS.values() for name in names)
    assert named == sorted(options.LONG)
    assert set(usage.PURPOSES) == {
        *(name for name in options.COMMANDS if name != "cpuinfo"), "cpuinfo dump", "cpuinfo check"
    }  # fmt: skip
    assert all(len(line) <= 100 for line in usage.usage().splitlines())


@pytest.mark.parametrize("more", ["", " --prev-images-dir x", " --lazy-pages"])
def test_a_stream_needs_a_streamer(more, tmp_path, capsys):
    assert main(f"dump -t 1 --stream -D {tmp_path}{more}".split()) == 1
    assert ("together" if more else "does not listen") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", ["check --stream", "dump -t 1 --inherit-fd fd[0]:x", "check --mntns-compat-mode"]
)
def test_options_of_restore_are_of_no_other_command(words, capsys):
    assert main(words.split()) == 1
    assert re.search("restore only|with this command", capsys.readouterr().err)

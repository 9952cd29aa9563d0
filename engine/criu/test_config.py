# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.criu import config
from torpor.engine.criu.parse import parse
from torpor.engine.errors import Refused


def words(tmp_path, text, arguments=(), **environment):
    file = tmp_path / "given.conf"
    file.write_text(text)
    return config.words(["dump", "--config", str(file), *arguments], environment)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# nothing\n\n   \n", []),
        ("leave-running\nlog-file dump.log\n", ["--leave-running", "--log-file=dump.log"]),
        ('  log-file   "d \\"x\\" y"  # why', ['--log-file=d "x" y']),
        ("log-file=dump.log", ["--log-file=dump.log"]),
        ("leave-running yes", ["--leave-running"]),
        ("no-leave-running#x", ["--no-leave-running#x"]),
        ("verbosity 4", ["--verbosity=4"]),
        ("nonsense", ["--nonsense"]),
        ("log-file\nleave-running", ["--log-file", "--leave-running"]),
    ],
)
def test_lines(tmp_path, text, expected):
    assert words(tmp_path, text) == expected


def test_default_files_of_another_user_are_left_aside(tmp_path, monkeypatch):
    (tmp_path / ".criu").mkdir()
    (tmp_path / ".criu" / "default.conf").write_text("leave-running\n")
    home = {"HOME": str(tmp_path)}
    assert "--leave-running" in config.words([], home)
    monkeypatch.setattr(config.os, "access", lambda path, mode: False)
    assert config.words([], home) == []


def test_quotes_must_be_closed(tmp_path):
    with pytest.raises(Refused, match="malformed"):
        words(tmp_path, 'leave-running\nlog-file "open\n')


def test_which_files_are_read(tmp_path):
    (tmp_path / ".criu").mkdir()
    (tmp_path / ".criu" / "default.conf").write_text("log-file home\n")
    (tmp_path / "variable.conf").write_text("log-file variable\n")
    home = {"HOME": str(tmp_path)}
    both = {**home, "CRIU_CONFIG_FILE": str(tmp_path / "variable.conf")}
    assert config.words(["dump"], home) == ["--log-file=home"]
    assert config.words(["dump"], both) == ["--log-file=home", "--log-file=variable"]
    assert config.words(["dump", "--no-default-config"], both) == ["--log-file=variable"]
    assert words(tmp_path, "log-file given", **both) == ["--log-file=variable", "--log-file=given"]
    assert config.words(["dump", "--config=/nonexistent"], home) == []


def test_the_command_line_counts_more():
    line = parse(
        ["dump", "-o", "b", "--no-leave-running"], before=["--log-file=a", "--leave-running"]
    )
    assert line.last("log_file") == "b"
    assert not line.flag("leave_running")


def test_a_command_is_no_option(tmp_path):
    with pytest.raises(Refused, match="unrecognized"):
        parse(["dump"], before=words(tmp_path, "dump\n"))

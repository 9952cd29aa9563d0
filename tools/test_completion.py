# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess

import pytest

from tools import completion
from torpor.engine.criu.options import OPTIONS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("completion")
    completion.write(directory)
    return directory


def completed(place, *words, cwd="/"):
    program = words[0]
    script = (
        f'source "{place}/bash/{program}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        f'_{program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        capture_output=True, text=True, check=True, cwd=cwd,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["criu", "du"], ["dump"]),
        (["criu", "dump", "--netw"], ["--network-lock"]),
        (["criu", "dump", "--network-lock", ""], ["iptables", "nftables", "skip"]),
        (["criu", "check", "--feature", "mem_d"], ["mem_dirty_track"]),
        (["criu", "--tcp-est"], ["--tcp-established"]),
        (["torpor", "re"], ["restore"]),
        (["torpor", "restore", "--pid"], ["--pidfile"]),
        (["torpor", "dump", "--pidf"], []),
    ],
)
def test_words_are_completed(place, words, expected):
    assert completed(place, *words) == expected


def test_every_option_is_offered(place):
    offered = completed(place, "criu", "dump", "--")
    assert sorted(offered) == sorted(f"--{option.long}" for option in OPTIONS)


def test_directories_follow_options_of_directories(place, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "image-file").touch()
    assert completed(place, "criu", "dump", "-D", "im", cwd=tmp_path) == ["images"]
    assert completed(place, "torpor", "dump", "-D", "im", cwd=tmp_path) == ["images"]
    assert sorted(completed(place, "criu", "dump", "-o", "im", cwd=tmp_path)) == [
        "image-file",
        "images",
    ]


@pytest.mark.parametrize("name", ["criu", "torpor"])
def test_zsh_is_told_of_the_same(place, name):
    script = place / "zsh" / f"_{name}"
    text = script.read_text()
    assert text.startswith(f"#compdef {name}\n")
    for one in ("'dump", "--images-dir[", "directory:_files -/"):
        assert one in text
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", script], check=True)

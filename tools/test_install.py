# SPDX-License-Identifier: Apache-2.0
import pytest

from tools.install import complete, install


@pytest.fixture
def venv(tmp_path):
    place = tmp_path / "venv"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to("/usr/bin/python3")
    (place / "lib" / "pip").mkdir(parents=True)
    (place / "lib" / "torpor").mkdir()
    return place


def test_the_name_of_criu_is_taken_only_when_asked(venv, tmp_path):
    prefix = tmp_path / "usr"
    assert install(venv, prefix, "", with_criu=False) == 0
    assert sorted(p.name for p in (prefix / "bin").iterdir()) == ["torpor"]
    assert install(venv, prefix, "", with_criu=True) == 0
    assert sorted(p.name for p in (prefix / "bin").iterdir()) == ["criu", "torpor"]
    script = (prefix / "bin" / "criu").read_text()
    assert f"{prefix}/lib/torpor/bin/python" in script.partition("-IS")[0]
    assert f"{prefix}/lib/torpor/lib/python3" in script
    assert sorted(p.name for p in (prefix / "lib" / "torpor" / "lib").iterdir()) == ["torpor"]


def test_completions_go_where_shells_look(tmp_path):
    for name in ("bash/torpor", "bash/criu", "zsh/_torpor", "zsh/_criu"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    complete(tmp_path, tmp_path / "usr", ["torpor"])
    share = tmp_path / "usr" / "share"
    assert (share / "bash-completion" / "completions" / "torpor").read_text() == "bash/torpor"
    assert (share / "zsh" / "site-functions" / "_torpor").read_text() == "zsh/_torpor"
    assert sorted(p.name for p in share.rglob("*") if p.is_file()) == ["_torpor", "torpor"]


def test_another_program_is_never_replaced(venv, tmp_path):
    prefix = tmp_path / "usr"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "criu").write_bytes(b"\x7fELF")
    assert install(venv, prefix, "", with_criu=True) == 1
    assert not (prefix / "bin" / "torpor").exists()
    assert (prefix / "bin" / "criu").read_bytes() == b"\x7fELF"


def test_a_package_is_staged(venv, tmp_path):
    assert install(venv, tmp_path / "usr", str(tmp_path / "stage"), with_criu=False) == 0
    script = tmp_path / "stage" / (tmp_path / "usr" / "bin" / "torpor").relative_to("/")
    assert f"{tmp_path}/usr/lib/torpor/bin/python" in script.read_text()

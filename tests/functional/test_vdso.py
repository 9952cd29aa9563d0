# SPDX-License-Identifier: Apache-2.0
"""A vDSO of another kernel: the old code stays, and its functions lead to this kernel's.

Another kernel is made of this one's: in the image the code of the vDSO is replaced by one whose
functions lie elsewhere, all trap instructions but for the symbols, as a different build's would
be of no use here. Reading it as it is would end the task.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.state_round import WORKLOADS, Round
from torpor.engine.errors import BadImage, Findings
from torpor.engine.images import manifest
from torpor.engine.images.directory import ImageDirectory, digest
from torpor.engine.images.pages import read_pagemap
from torpor.engine.memory import vdso
from torpor.engine.options import After

pytestmark = [pytest.mark.functional, pytest.mark.root]
PROGRAM = WORKLOADS / "vdso_calls.py"
WITHOUT = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")


@pytest.fixture
def started(tmp_path):
    one = Round(tmp_path, str(PROGRAM), str(tmp_path))
    yield one
    one.end()


def said(started, name="before"):
    return json.loads(started.wait_for(f"{name}.json").read_text())


def answer(started, number):
    (started.folder / f"ask-{number}").touch()
    return said(started, f"after-{number}")


def other_kernel(images, pid, start, end, *, rename=()):
    """Trap in every function of the image's vDSO; ``rename`` gives names of other functions."""
    with ImageDirectory.open(images) as opened:
        pagemap = read_pagemap(opened, f"pagemap-{pid}")
        runs = [r for r in pagemap.located() if r.run.vaddr <= start and end <= r.run.end]
    (run,) = runs
    offset = run.offset + start - run.run.vaddr
    path = images / f"pages-{pagemap.pages_id}.img"
    content = bytearray(path.read_bytes())
    code = content[offset : offset + end - start]
    for at in vdso.symbols(bytes(code)).values():
        code[at : at + 64] = b"\xcc" * 64
    for old, new in rename:
        code = code.replace(old, new)
    content[offset : offset + end - start] = code
    path.write_bytes(content)
    (images / "torpor.json").write_bytes(sealed(images, path.name))
    return bytes(code)


def sealed(images, name):
    """torpor.json with the digest of a file that was changed."""
    kept = manifest.decode((images / "torpor.json").read_bytes())
    with (images / name).open("rb") as file:
        files = {**kept.files, name: digest(file.fileno())}
    return manifest.encode(manifest.Manifest(files=files, facts=kept.facts))


def working(results, besides=()):
    bad = {name: r for name, r in results.items() if r != [0, True] and name not in besides}
    return bool(results) and not bad


def test_same_kernel_moves_its_own_block_to_the_old_place(started):
    before = said(started)
    assert working(before["results"], ("getrandom",))
    started.restore(started.dump())
    after = answer(started, 1)
    assert after["special"] == before["special"]
    assert after["results"] == before["results"]


def test_another_kernels_functions_lead_to_this_one(started):
    before = said(started)
    images = started.dump()
    code = other_kernel(images, started.pid, before["start"], before["end"])
    started.restore(images)
    after = answer(started, 1)
    assert working(after["results"], ("getrandom",))
    assert after["results"] == before["results"]
    (new,) = [part for part in after["special"] if part[0] == "[vdso]"]
    assert new[1] != before["start"]
    with Path(f"/proc/{started.pid}/mem").open("rb") as memory:
        memory.seek(before["start"])
        now = memory.read(before["end"] - before["start"])
    assert vdso.symbols(now) == vdso.symbols(code)
    assert now != code
    again(started, before, after)


def again(started, before, earlier):
    """What was restored so can be dumped and restored as anything else, more than once."""
    copy = started.dump("copy", after=After.CONTINUE)
    assert copy.exists()
    images = started.dump("second")
    (start, end) = next((p[1], p[2]) for p in earlier["special"] if p[0] == "[vdso]")
    started.restore(images)
    after = answer(started, 2)
    assert after["special"] == earlier["special"]
    assert after["results"] == before["results"]
    third = started.dump("third")
    other_kernel(third, started.pid, start, end)
    started.restore(third)
    assert answer(started, 3)["results"] == before["results"]
    assert started.wait() == 0, started.log()


def test_a_function_that_this_kernel_lacks_becomes_a_system_call(started, monkeypatch):
    before = said(started)
    images = started.dump()
    other_kernel(images, started.pid, before["start"], before["end"])
    whole = vdso.symbols
    calls = []

    def fewer(image):
        calls.append(image)
        found = whole(image)
        return {n: v for n, v in found.items() if len(calls) == 1 or n != "__vdso_clock_gettime"}

    monkeypatch.setattr(vdso, "symbols", fewer)
    started.restore(images)
    assert len(calls) == 2
    assert working(answer(started, 1)["results"], ("getrandom",))


def test_a_function_that_nothing_can_stand_for_is_refused(started):
    before = said(started)
    images = started.dump()
    rename = [(b"__vdso_getcpu", b"__vdso_gotcha")]
    other_kernel(images, started.pid, before["start"], before["end"], rename=rename)
    with pytest.raises(BadImage, match="this kernel's vDSO lacks __vdso_gotcha") as error:
        started.restore(images)
    assert "restore on a kernel" in error.value.remedy


@pytest.fixture(scope="session")
def gone(tmp_path_factory):
    program = tmp_path_factory.mktemp("vdso") / "vdso_gone"
    source = WORKLOADS / "vdso_gone.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", program, source], check=True)
    return str(program)


def without(folder, *command):
    one = Round(folder, *command, python=False)
    try:
        yield one
    finally:
        one.end()


def test_a_task_without_a_vdso_comes_back_without(gone, tmp_path):
    for started in without(tmp_path, gone, str(tmp_path)):
        assert said(started)["special"] == []
        started.restore(started.dump())
        assert answer(started, 1)["special"] == []
        started.restore(started.dump("second"))
        assert answer(started, 2)["special"] == []


def test_a_vdso_without_its_code_is_refused(gone, tmp_path):
    for started in without(tmp_path, gone, str(tmp_path), "code"):
        assert said(started)["special"]
        with pytest.raises(Findings, match="only the code was unmapped") as error:
            started.dump()
        assert "leave it mapped" in error.value.remedy
        assert "[vvar]" in answer(started, 1)["special"]


def test_nothing_needs_page_frame_numbers(tmp_path):
    """The kernel hides them from who lacks CAP_SYS_ADMIN (fs/proc/task_mmu.c, pagemap_read)."""
    command = [*WITHOUT, sys._base_executable, str(PROGRAM), str(tmp_path)]
    for started in without(tmp_path, *command):
        moved_by_commands(started)


def moved_by_commands(started):
    before = said(started)
    images = started.folder / "images"
    hidden("dump", str(started.pid), "-D", str(images))
    started.reap()
    other_kernel(images, started.pid, before["start"], before["end"])
    hidden("restore", "-D", str(images), "-d")
    started.alive = True
    assert answer(started, 1)["results"] == before["results"]


def hidden(*words):
    """A command of torpor without CAP_SYS_ADMIN."""
    seen = (
        "import os,struct; fd=os.open('/proc/self/pagemap',0);"
        "pages=[struct.unpack('Q',os.pread(fd,8,(id(os)>>12)*8))[0]];"
        "assert pages[0]>>63 and not pages[0]&(1<<55)-1"
    )
    for command in (["-c", seen], ["-m", "torpor.engine.cli", *words]):
        done = subprocess.run(
            [*WITHOUT, sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr

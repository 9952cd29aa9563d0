# SPDX-License-Identifier: Apache-2.0
"""Work that ends with a result: pipelines, compilers, sound, an emulated machine."""

import hashlib
import shlex
import subprocess
from collections.abc import Generator
from pathlib import Path

from tests.programs.stage import Stage

Steps = Generator[None, None, None]
BOOT = """
.code16
start:  xor %ax, %ax
        mov %ax, %ds
        mov $0x7c00, %sp
        xor %ebx, %ebx
again:  inc %ebx
        mov %ebx, %ecx
        and $0x1ffff, %ecx
        jnz again
        mov $0x3f8, %dx
        mov %ebx, %eax
        shr $17, %eax
        and $0xf, %al
        add $'a', %al
        out %al, %dx
        jmp again
.org 510
.word 0xaa55
"""


def bash_pipeline(stage: Stage) -> Steps:
    """`count | double | file`, stopped in the middle: nothing lost, nothing twice."""
    stage.busy = True
    stage.shell(
        f"cd {stage.folder}; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; "
        "[ -e go ] || sleep 0.002; done | while read n; do echo $((n * 2)); done | cat > out; "
        "touch done; sleep 1000"
    )
    for _ in range(2):
        stage.eventually(lambda: stage.text("out"), "no output")
        yield
    (stage.folder / "go").touch()
    stage.eventually(lambda: (stage.folder / "done").exists() or None, "it does not end")
    lines = (stage.text("out") or "").split()
    assert lines == [str(2 * number) for number in range(1, 3001)]


def compile_job(stage: Stage) -> Steps:
    """`make -j2` of many C files; what it makes must run."""
    stage.busy = True
    folder = stage.folder
    names = [f"part{n}" for n in range(60)]
    for n, name in enumerate(names):
        body = "".join(f"int f{n}_{i}(int x) {{ return x * {i} + {n}; }}\n" for i in range(150))
        (folder / f"{name}.c").write_text(f"{body}int {name}(void) {{ return f{n}_1({n}); }}\n")
    calls = "".join(f"int {name}(void);\n" for name in names)
    total = " + ".join(f"{name}()" for name in names)
    (folder / "main.c").write_text(
        f'#include <stdio.h>\n{calls}int main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    objects = " ".join(f"{name}.o" for name in [*names, "main"])
    (folder / "Makefile").write_text(f"all: {objects}\n\tcc -o whole {objects}\n\ttouch done\n")
    stage.shell(f"cd {folder}; make -j2 CFLAGS=-O2 all; sleep 1000")
    for number in (5, 25):
        stage.eventually(lambda n=number: len(list(folder.glob("*.o"))) >= n or None, "no objects")
        yield
    stage.eventually(lambda: (folder / "done").exists() or None, "make does not end")
    told = subprocess.run([folder / "whole"], capture_output=True, text=True, check=True).stdout
    assert int(told) == sum(2 * n for n in range(60))


def sox(stage: Stage) -> Steps:
    """A sound is made; it must be the same to the byte as one made without a stop."""
    words = ["-R", "-n", "{}", *shlex.split("synth 400 sine 300-3300 reverb 50 rate -v 44100")]
    alone = stage.folder / "alone.wav"
    out = stage.folder / "out.wav"
    stage.shell(
        f"cd {stage.folder}; sox {' '.join(words).format('out.wav')}; touch done; sleep 1000"
    )
    for size in (1 << 20, 4 << 20):
        stage.eventually(lambda s=size: (out.exists() and out.stat().st_size > s) or None, "small")
        yield
    stage.eventually(lambda: (stage.folder / "done").exists() or None, "it does not end")
    subprocess.run(["sox", *(w.format(alone) for w in words)], check=True)
    assert digest(out) == digest(alone)


def ffmpeg(stage: Stage) -> Steps:
    """A film is encoded by several threads; every frame is as without a stop."""
    words = (
        "-nostdin -y -v error -f lavfi -i testsrc2=size=320x240:rate=25:duration=240 -c:v mpeg4 "
        "-threads 2 -flags +bitexact -fflags +bitexact -f avi"
    )
    stage.shell(f"cd {stage.folder}; ffmpeg {words} out.avi; touch done; sleep 1000")
    stage.busy = True
    out, alone = stage.folder / "out.avi", stage.folder / "alone.avi"
    for size in (1 << 20, 4 << 20):
        stage.eventually(lambda s=size: (out.exists() and out.stat().st_size > s) or None, "small")
        yield
    stage.eventually(lambda: (stage.folder / "done").exists() or None, "it does not end")
    subprocess.run(["ffmpeg", *words.split(), str(alone)], check=True)
    assert digest(out) == digest(alone)


def digest(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def qemu(stage: Stage) -> Steps:
    """An emulated machine counts on its serial line; no letter is missing."""
    folder = stage.folder
    (folder / "boot.s").write_text(BOOT)
    subprocess.run(["as", "--32", "-o", "boot.o", "boot.s"], cwd=folder, check=True)
    subprocess.run(["objcopy", "-O", "binary", "boot.o", "boot.img"], cwd=folder, check=True)
    stage.run(
        "qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-display", "none", "-monitor", "none",
        "-nodefaults", "-serial", f"file:{folder}/serial",
        "-drive", f"file={folder}/boot.img,format=raw,if=ide", "-boot", "c",
    )  # fmt: skip
    for _ in range(2):
        counts(stage, 40)
        yield
    counts(stage, 40)
    letters = stage.text("serial") or ""
    start = letters.index("a") if "a" in letters else 0
    wanted = "".join(
        chr(97 + (i + ord(letters[start]) - 97) % 16) for i in range(len(letters) - start)
    )
    assert letters[start:] == wanted


def counts(stage: Stage, more: int) -> None:
    """Wait for so many letters more on the serial line."""
    wanted = len(stage.text("serial") or "") + more
    stage.eventually(lambda: len(stage.text("serial") or "") >= wanted or None, "it is mute")


PROGRAMS = {
    "bash pipeline": bash_pipeline, "make and gcc": compile_job, "sox": sox, "ffmpeg": ffmpeg,
    "qemu (TCG)": qemu,
}  # fmt: skip

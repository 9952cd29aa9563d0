# SPDX-License-Identifier: Apache-2.0
"""The build fails on what code without a loader must not hold, and repeats itself exactly."""

from pathlib import Path

import pytest

from native.build import MACHINE, BuildError, build_executor, build_programs

ENTRY = '__attribute__((section(".text.entry"), used)) static int entry(int x) '
BAD = {
    "writable section .bss": f"static int n; {ENTRY} {{ n += x; return n; }}",
    "writable section .data": f"static volatile int n = 5; {ENTRY} {{ return n += x; }}",
    "writable section .data.rel": "static const char *const volatile t[] = {"
    f'"a", "bb"}}; {ENTRY} {{ return t[x][0]; }}',
    "undefined reference to `g'": f"extern int g(int); {ENTRY} {{ return g(x); }}",
    "undefined reference to `memset'": "extern void *memset(void *, int, unsigned long); "
    f"{ENTRY} {{ char b[99]; memset(b, x, 99); __asm__(\"\" :: \"r\"(b)); return b[5]; }}",
    "the budget is": f"static const char t[70000] = {{1}}; {ENTRY} {{ return t[x]; }}",
    "orphan section": 'static const int odd_one __attribute__((section("odd"), used)) = 5; '
    f"{ENTRY} {{ return x; }}",
    "absolute relocations": f"{ENTRY} {{ return x; }} "
    '__asm__(".pushsection .rodata; .quad entry; .popsection");',
    "unused variable": f"{ENTRY} {{ int y; return x; }}",
}  # fmt: skip


def compiled(tmp_path: Path, text: str) -> Path:
    source = tmp_path / "source.c"
    source.write_text(text)
    return build_executor(tmp_path / "out", sources=(source,))


@pytest.mark.parametrize("rule", BAD)
def test_executor_is_refused(tmp_path: Path, rule: str) -> None:
    with pytest.raises(BuildError) as caught:
        compiled(tmp_path, BAD[rule])
    assert rule in str(caught.value)
    assert not list((tmp_path / "out").glob("*")), "a refused build must leave nothing"


def test_executor_starts_with_its_entry(tmp_path: Path) -> None:
    others = (
        'static const char t[] = "text"; '
        "__attribute__((noinline)) static int f(int x) { return t[x & 3]; }"
    )
    flat = compiled(tmp_path, f"{others} {ENTRY} {{ return f(x); }}").read_bytes()
    alone = compiled(tmp_path, f"{ENTRY} {{ return x + 41; }}").read_bytes()
    assert b"text" in flat
    if MACHINE == "x86_64":
        assert alone == bytes.fromhex("8d4729c3")  # lea eax, [rdi+41]; ret


def test_same_sources_same_bytes(tmp_path: Path) -> None:
    one = [build_executor(tmp_path / "1"), *build_programs(tmp_path / "1")]
    two = [build_executor(tmp_path / "2"), *build_programs(tmp_path / "2")]
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert all(b"/tmp" not in path.read_bytes() for path in one)

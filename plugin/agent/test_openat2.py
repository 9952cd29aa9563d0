# SPDX-License-Identifier: Apache-2.0
"""openat2 refuses each way out by itself, whatever its callers check."""

import errno
import os
from pathlib import Path

import pytest

from torpor.plugin.agent.openat2 import IN_ROOT, INSIDE, openat2


@pytest.fixture
def root(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_text("outside")
    tree = tmp_path / "tree"
    (tree / "d" / "outside").mkdir(parents=True)
    (tree / "d" / "f").write_text("inside")
    (tree / "absolute").symlink_to(tmp_path / "outside")
    (tree / "relative").symlink_to("../outside")
    (tree / "within").symlink_to("d")
    (tree / "magic").symlink_to("/proc/self/cwd")
    fd = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def opened(root: int, path: str, resolve) -> bytes:
    fd = openat2(root, path, os.O_RDONLY, resolve)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("absolute/f", errno.ELOOP),
        ("relative/f", errno.ELOOP),
        ("within/f", errno.ELOOP),
        ("magic", errno.ELOOP),
        ("../outside/f", errno.EXDEV),
        ("/etc/passwd", errno.EXDEV),
        ("d/missing", errno.ENOENT),
    ],
)
def test_inside_refuses(root: int, path: str, number: int):
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        opened(root, path, INSIDE)
    assert caught.value.errno == number


def test_inside_opens_plain_paths(root: int):
    assert opened(root, "d/f", INSIDE) == b"inside"
    link = openat2(root, "within", os.O_PATH | os.O_NOFOLLOW, INSIDE)
    assert os.readlink("", dir_fd=link) == "d"
    os.close(link)


def test_inside_crosses_no_mount():
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            openat2(fd, "proc/self/status", os.O_RDONLY, INSIDE)
        assert caught.value.errno == errno.EXDEV
    finally:
        os.close(fd)


def test_in_root_keeps_links_below(root: int):
    assert opened(root, "within/f", IN_ROOT) == b"inside"
    assert opened(root, "../../../d/f", IN_ROOT) == b"inside"
    with pytest.raises(FileNotFoundError):  # the target is looked for below the root
        opened(root, "absolute/f", IN_ROOT)

# SPDX-License-Identifier: Apache-2.0
"""The image codec against Debian's criu: its images, its decoder, its restore."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.unknown_fields import UnknownFieldSet

from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.format import Writer, read_entries
from torpor.engine.images.inventory import read_inventory
from torpor.engine.images.kinds import file_name, kind_of
from torpor.engine.images.magic import Magic
from torpor.engine.images.pages import read_pagemap, write_pagemap
from torpor.engine.images.proto import criu_pb2, rpc_pb2
from torpor.engine.images.source import Source
from torpor.engine.images.writing import NewImageDirectory

from .criu_root import CriuRoot

pytestmark = [pytest.mark.root, pytest.mark.compat]

HERE = Path(__file__).parent
OPTIONS = ("-v4", "-o", "dump.log", "--network-lock", "skip", "--ghost-limit", "99999999")
VARIANTS = {
    "host": ((), ("tcp", "lock", "pty", "seccomp", "comm"), ("--tcp-established", "--file-locks")),
    "namespaces": (
        ("unshare", "--pid", "--fork", "--mount-proc", "--mount", "--net", "--uts", "--ipc"),
        ("ipc",),
        ("--empty-ns", "net"),
    ),
}
EXPECTED = {
    "host": "core fdinfo fifo-data filelocks files fs ghost-file ids inventory memfd mm pagemap "
    "pagemap-shmem pipes-data pstree remap-fpath seccomp sk-queues tcp-stream timens tty-data "
    "tty-info",
    "namespaces": "ipcns-msg ipcns-sem ipcns-shm ipcns-var mountpoints utsns",
}


@contextmanager
def started(command: list[str], ready: Path) -> Iterator[int]:
    """Run a command in a session of its own; gives the pid of the last of its line."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    pid = process.pid
    try:
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
        yield pid
    finally:
        if process.poll() is None and Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def dump(root: CriuRoot, pid: int, place: Path, *options: str) -> None:
    """CRIU is the yardstick here, not what is tested: it may try again (seen: a wait of 30 s)."""
    command = root.criu("dump", "-t", str(pid), "-D", str(place), *OPTIONS, *options)
    for _ in range(3):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    log = place / "dump.log"
    raise AssertionError(done.stderr, log.read_text()[-3000:] if log.exists() else "")


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def images(request, criu_root: CriuRoot, tmp_path_factory) -> tuple[str, Path]:
    """Images that CRIU made of sample.py."""
    prefix, words, options = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "work").mkdir()
    inner = ["setsid"] if prefix else []
    sample = [sys.executable, str(HERE / "sample.py"), str(folder / "work"), *words]
    with started([*prefix, *inner, *sample], folder / "work" / "ready") as pid:
        dump(criu_root, pid, folder / "images", *options)
    return request.param, folder / "images"


@pytest.fixture(scope="module")
def facts(criu_root: CriuRoot) -> dict:
    """What pycriu says of schema and magics."""
    command = criu_root.python(str(HERE / "descriptors.py"))
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_schema_is_that_of_pycriu(facts: dict):
    theirs = descriptor_pb2.FileDescriptorSet.FromString(bytes.fromhex(facts["schema"]))
    foreign = ("google/protobuf/descriptor.proto", "opts.proto")
    expected = flattened(file for file in theirs.file if file.name not in foreign)
    ours = flattened([*described(criu_pb2.DESCRIPTOR), *described(rpc_pb2.DESCRIPTOR)])
    assert len(expected) > 1200
    assert ours == expected


def test_magics_are_those_of_pycriu(facts: dict):
    # KDAT is a cache under /run, V1_1 a version: neither is the first word of an image
    expected = {name: word for name, word in facts["magic"].items() if name[:4] not in _OTHERS}
    assert {magic.name: int(magic) for magic in Magic} == expected


def test_every_image_comes_back_byte_for_byte(images: tuple[str, Path]):
    variant, place = images
    seen = set()
    with ImageDirectory.open(place) as directory:
        for name in directory.names:
            kind = kind_of(name)
            if kind is None:
                assert name.startswith(("pages-", "tmpfs-")), name
                continue
            data = (place / file_name(name)).read_bytes()
            out = io.BytesIO()
            writer = Writer(out, name, kind)
            for entry in read_entries(io.BytesIO(data), name, kind):
                assert not UnknownFieldSet(entry.message), name
                writer.add(entry.message, entry.payload)
            writer.finish()
            assert out.getvalue() == data, name
            seen.add(name if name in ("pipes-data", "stats-dump") else name.rpartition("-")[0])
            seen.add(name)
    assert set(EXPECTED[variant].split()) <= seen


def test_pagemaps_and_inventory_hold_together(images: tuple[str, Path]):
    with ImageDirectory.open(images[1]) as directory:
        assert read_inventory(directory).img_version == 2
        maps = [name for name in directory.names if name.startswith("pagemap-")]
        assert len(maps) >= 3
        assert sum(read_pagemap(directory, name).stored_bytes for name in maps) > 1 << 20
        assert {"REG", "PIPE", "UNIXSK", "EVENTFD"} <= set(Source(directory).file_types())


def rewritten(source: Path, target: Path) -> list[str]:
    """Read a directory with our codec and write it anew."""
    with ImageDirectory.open(source) as old, NewImageDirectory.create(target) as new:
        for name in old.names:
            if name.startswith("pagemap-"):
                pagemap = read_pagemap(old, name)
                write_pagemap(new, name, pagemap.pages_id, pagemap.runs)
            elif kind_of(name):
                for entry in old.entries(name):
                    new.add(name, entry.message, entry.payload)
            else:
                fd = new.create_file(name)
                with os.fdopen(fd, "wb") as out:
                    out.write((source / file_name(name)).read_bytes())
        new.finish(durable=False)
        return list(old.names)


def test_pycriu_decodes_ours(criu_root: CriuRoot, images: tuple[str, Path], tmp_path: Path):
    variant, theirs = images
    ours = tmp_path / "ours"
    names = [name for name in rewritten(theirs, ours) if kind_of(name)]
    expected, found = (decoded(criu_root, place, names) for place in (theirs, ours))
    for name in names:
        before, after = expected[file_name(name)], found[file_name(name)]
        if before is None:  # pycriu cannot read a comm that is not UTF-8; CRIU and we can
            assert name.startswith("core-")
            assert variant == "host"
        elif kind_of(name).magic is Magic.PAGEMAP:  # ours also counts where older readers look
            for entry in after["entries"][1:]:
                assert entry["compat_nr_pages"] == entry["nr_pages"]
                entry["compat_nr_pages"] = 0
        assert after == before, name
    assert len(names) > 20


def test_crit_shows_ours(criu_root: CriuRoot, images: tuple[str, Path], tmp_path: Path):
    rewritten(images[1], tmp_path / "ours")
    command = criu_root.crit("show", str(tmp_path / "ours" / "files.img"))
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    with ImageDirectory.open(tmp_path / "ours") as directory:
        files = list(directory.messages("files", criu_pb2.file_entry))
    assert [entry["id"] for entry in shown["entries"]] == [file.id for file in files]


def decoded(root: CriuRoot, place: Path, names: list[str]) -> dict:
    """What pycriu makes of images; None for one it cannot read."""
    paths = [str(place / file_name(name)) for name in names]
    command = root.python(str(HERE / "decode.py"), *paths)
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_criu_restores_ours(criu_root: CriuRoot, tmp_path: Path):
    program = (
        "import os, signal, sys, time\n"
        "data = os.urandom(1 << 20); place = sys.argv[1]\n"
        "def tell(*_): open(place, 'wb').write(data); os._exit(0)\n"
        "signal.signal(signal.SIGUSR1, tell)\n"
        "open(place, 'wb').write(data)\n"
        "while True: time.sleep(1000)\n"
    )
    place = tmp_path / "data"
    with started([sys.executable, "-c", program, str(place)], place) as pid:
        time.sleep(0.3)
        dump(criu_root, pid, tmp_path / "theirs")
    data = place.read_bytes()
    rewritten(tmp_path / "theirs", tmp_path / "ours")
    place.write_bytes(b"\0" * len(data))  # CRIU wants the size it knew
    images = str(tmp_path / "ours")
    command = criu_root.criu("restore", "-d", "-D", images, "-v4", "-o", "restore.log")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (tmp_path / "ours" / "restore.log").read_text()[-3000:]
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while place.read_bytes() != data:
        assert time.monotonic() < deadline
        time.sleep(0.05)


_OTHERS = ("KDAT", "CRTO")


def described(root) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    seen: dict[str, object] = {}
    waiting = [root]
    while waiting:
        file = waiting.pop()
        if file.name not in seen:
            seen[file.name] = file
            waiting.extend(file.dependencies)
    for file in seen.values():
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        yield proto


def flattened(files) -> dict[str, object]:
    """Every field and every value of an enum, in the terms of the wire."""
    table: dict[str, object] = {}

    def enum(item, prefix: str) -> None:
        for value in item.value:
            table[f"{prefix}{item.name}:{value.name}"] = value.number

    def message(item, prefix: str) -> None:
        name = f"{prefix}{item.name}"
        table[name] = "message"
        for field in item.field:
            text = field.type == field.TYPE_STRING  # bytes on the wire, and in our schema
            table[f"{name}.{field.name}"] = (
                field.number,
                field.TYPE_BYTES if text else field.type,
                field.label,
                field.type_name.removeprefix(".torpor.images"),
                field.default_value,
                field.options.packed,
            )
        for nested in item.nested_type:
            message(nested, f"{name}.")
        for nested in item.enum_type:
            enum(nested, f"{name}.")

    for file in files:
        for item in file.message_type:
            message(item, "")
        for item in file.enum_type:
            enum(item, "")
    return table

# SPDX-License-Identifier: Apache-2.0
import tarfile

import pytest

from torpor.engine import text
from torpor.engine.errors import BadImage
from torpor.engine.images import manifest
from torpor.engine.images.directory import ImageDirectory, Verify
from torpor.engine.images.inventory import write_inventory
from torpor.engine.images.pages import PageFlags, PageRun, write_pages
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.writing import NewImageDirectory
from torpor.engine.inspect import memory
from torpor.engine.inspect.archive import directory_of
from torpor.engine.inspect.descriptors import address
from torpor.engine.inspect.lines import line, plain
from torpor.engine.inspect.read import read
from torpor.engine.inspect.render import lines, tree
from torpor.engine.tasks import encode, registers

ARGS_AT = 0x7000_0000_1FF8
FOWN = pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)


def regular(images, number, path, flags=0, pos=0):
    entry = pb.file_entry(type=pb.REG, id=number)
    entry.reg.CopyFrom(pb.reg_file_entry(id=number, flags=flags, pos=pos, fown=FOWN, name=path))
    images.add("files", entry)


def core(state=1, comm=b"worker", exit_code=0):
    entry = pb.core_entry(mtype=pb.core_entry.X86_64)
    entry.thread_info.clear_tid_addr = 0
    for name in registers.GP_FIELDS:
        setattr(entry.thread_info.gpregs, name, 0)
    for name in ("cwd", "swd", "twd", "fop", "rip", "rdp", "mxcsr", "mxcsr_mask"):
        setattr(entry.thread_info.fpregs, name, 0)
    entry.tc.CopyFrom(
        pb.task_core_entry(
            task_state=state, exit_code=exit_code, personality=0, flags=0, blk_sigset=0, comm=comm
        )
    )
    creds = pb.creds_entry(
        uid=33, gid=33, euid=33, egid=33, suid=33, sgid=33, fsuid=33, fsgid=33, secbits=0
    )
    entry.thread_core.CopyFrom(
        pb.thread_core_entry(futex_rla=0, futex_rla_len=0, creds=creds, comm=comm)
    )
    return entry


def address_space(images, pid):
    entry = pb.mm_entry(exe_file_id=1)
    for name in encode.MARKERS.values():
        setattr(entry, name, 0)
    entry.mm_arg_start, entry.mm_arg_end = ARGS_AT, ARGS_AT + 18
    for start, end, status in (
        (0x10000, 0x14000, 1 | memory.HEAP),
        (0x7000_0000_0000, 0x7000_0000_3000, 1 | memory.STACK),
    ):
        entry.vmas.add(
            start=start, end=end, pgoff=0, shmid=0, prot=3, flags=0x22, status=status, fd=-1
        )
    images.add(f"mm-{pid}", entry)
    pages = [b"\0" * 4096, b"\0" * 4088 + b"./worker", b"\0-x\0\x1b[31m\0".ljust(4096, b"\0")]
    write_pages(
        images,
        f"pagemap-{pid}",
        pid,
        [
            PageRun(vaddr=0x10000, page_count=1),
            PageRun(vaddr=0x11000, page_count=1, flags=PageFlags.PARENT),
            PageRun(vaddr=0x7000_0000_1000, page_count=2),
        ],
        pages,
    )


@pytest.fixture
def directory(tmp_path):
    with NewImageDirectory.create(tmp_path / "images") as images:
        write_inventory(
            images, root_ids=pb.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1)
        )
        for pid, ppid, threads in ((41, 0, (41, 50)), (42, 41, (42,)), (43, 41, (43,))):
            entry = pb.pstree_entry(pid=pid, ppid=ppid, pgid=41, sid=41)
            entry.threads.extend(threads)
            images.add("pstree", entry)
        images.add("core-41", core())
        images.add("core-50", core(comm=b"helper"))
        images.add("core-42", core(comm=b"child"))
        images.add("core-43", core(state=2, exit_code=3 << 8))
        for pid in (41, 42):
            images.add(
                f"ids-{pid}",
                pb.task_kobj_ids_entry(vm_id=pid, files_id=1, fs_id=pid, sighand_id=pid),
            )
            images.add(f"fs-{pid}", pb.fs_entry(cwd_id=2, root_id=3, umask=18))
            address_space(images, pid)
        regular(images, 1, b"/bin/worker")
        regular(images, 2, b"/srv/\xff")
        regular(images, 3, b"/")
        regular(images, 4, b"/var/log/x", flags=1 | 0o2000, pos=512)
        images.add(
            "remap-fpath", pb.remap_file_path_entry(orig_id=4, remap_id=1, remap_type=pb.GHOST)
        )
        images.add("fdinfo-1", pb.fdinfo_entry(id=4, flags=1, type=pb.REG, fd=7))
        images.add("fdinfo-1", pb.fdinfo_entry(id=2, flags=0, type=pb.REG, fd=3))
        images.extra("dump", "time", "2026-11-23T20:00:00Z")
        images.extra("dump", "machine", {"node": "node-a", "release": "6.18"})
        images.extra("dump", "warnings", ["a socket was closed"])
        return images.finish(durable=False)


def test_tasks_threads_and_arguments_are_read(directory):
    images = read(directory)
    root, child, zombie = images.tasks
    assert root.args == ("./worker", "-x", "\x1b[31m")
    assert [t.comm for t in root.threads] == ["worker", "helper"]
    assert (root.exe, root.uid, root.state) == ("/bin/worker", 33, "running")
    assert (child.shares_descriptors_of, child.descriptors) == (41, ())
    assert (zombie.state, zombie.exit_status) == ("zombie", "exit code 3")
    assert images.origin.machine["node"] == "node-a"
    assert images.verified == "all digests match"


def test_descriptors_are_named_and_sorted(directory):
    three, seven = read(directory).tasks[0].descriptors
    assert (three.fd, three.kind, three.name) == (3, "file", "/srv/\udcff")
    assert seven.detail == "write, append, at byte 512, deleted, content saved"
    assert (seven.cloexec, three.cloexec) == (True, False)


def test_memory_is_summed_by_kind(directory):
    found = read(directory).tasks[0].memory
    assert (found.stored_bytes, found.parent_bytes) == (3 << 12, 1 << 12)
    assert found.mapped_bytes == 7 << 12
    assert {k.kind: (k.mapped_bytes, k.stored_bytes) for k in found.kinds} == {
        "heap": (4 << 12, 1 << 12),
        "stack": (3 << 12, 2 << 12),
    }


def test_text_has_everything_and_no_escape_sequence(directory):
    told = "\n".join(plain(one) for one in lines(read(directory)))
    for wanted in (
        "on node-a, Linux 6.18",
        "3 (1 zombie), 3 threads, 2 descriptors",
        "└─ 43 worker  zombie, exit code 3",
        "warning     a socket was closed",
        r"./worker -x \x1b[31m",
        r"/srv/\udcff",
        "files       shared with task 41",
    ):
        assert wanted in told, wanted
    assert "\x1b" not in told


def test_the_tree_shows_who_is_whose_child(directory):
    assert [plain(one).split()[0] for one in tree(read(directory).tasks)] == ["41", "├─", "└─"]


def test_an_argument_area_that_is_not_stored_is_not_invented(tmp_path, directory):
    entry = pb.mm_entry(mm_arg_start=0x11000, mm_arg_end=0x11010)
    with ImageDirectory.open(directory) as images:
        pagemap = memory.pagemap_of(images, 41)
        assert memory.arguments(images, entry, pagemap) is None
        entry.mm_arg_start, entry.mm_arg_end = 0x10FF8, 0x11008
        assert memory.arguments(images, entry, pagemap) is None


def test_damage_is_said(directory):
    target = directory / "pages-41.img"
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(BadImage):
        read(directory)


def packed(path, directory, prefix, mode="w", evil=()):
    with tarfile.open(path, mode) as archive:
        for file in sorted(directory.iterdir()):
            archive.add(file, prefix + file.name)
        for name, kind, target in evil:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


@pytest.mark.parametrize(("prefix", "mode"), [("checkpoint/", "w"), ("./", "w:gz"), ("", "w")])
def test_archives_are_read_like_directories(tmp_path, directory, prefix, mode):
    path = packed(tmp_path / "c.tar", directory, prefix, mode)
    with directory_of(path) as place:
        assert read(place).tasks == read(directory).tasks
    assert not place.exists()


def test_tricks_of_an_archive_come_to_nothing(tmp_path, directory):
    evil = [
        ("../core-99.img", tarfile.REGTYPE, ""),
        ("/core-98.img", tarfile.REGTYPE, ""),
        ("core-97.img", tarfile.SYMTYPE, "/etc/passwd"),
        ("core-96.img", tarfile.CHRTYPE, ""),
        ("other/core-95.img", tarfile.REGTYPE, ""),
        ("core-94.img", tarfile.LNKTYPE, "x"),
    ]
    path = packed(tmp_path / "c.tar", directory, "checkpoint/", evil=evil)
    with directory_of(path) as place:
        assert {f.name for f in place.iterdir()} == {f.name for f in directory.iterdir()}


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x28\xb5\x2f\xfd zstd"])
def test_what_is_no_archive_is_said(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadImage), directory_of(path):
        pass


@pytest.mark.parametrize(
    ("family", "words", "port", "wanted"),
    [
        (2, [0x0100007F], 80, "127.0.0.1:80"),
        (2, [0], 80, "*:80"),
        (10, [0, 0, 0, 0x01000000], 443, "[::1]:443"),
        (10, [1], 1, "*:1"),
    ],
)
def test_addresses(family, words, port, wanted):
    assert address(family, words, port) == wanted


def test_small_texts():
    assert text.size(4928307) == "4.7 MiB"
    assert text.size(512) == "512 B"
    assert text.duration(0.0021) == "2.1 ms"
    assert text.count(1204, "page") == "1,204 pages"
    assert text.parse_size("64M") == 64 << 20
    assert plain(line("a\nb", ("\x1b[0m", "bold"))) == r"a\nb\x1b[0m"
    with pytest.raises(ValueError, match="size"):
        text.parse_size("-1")


@pytest.mark.parametrize("odd", [{"stop": {}}, {"stop": "x"}, [1], 7])
def test_odd_durations_are_a_bad_image(directory, odd):
    path = directory / "torpor.json"
    known = manifest.decode(path.read_bytes())
    known.facts["dump"]["pause_s"] = odd
    path.write_bytes(manifest.encode(known))
    with pytest.raises(BadImage, match="values that no task"):
        read(directory, verify=Verify.NOTHING)

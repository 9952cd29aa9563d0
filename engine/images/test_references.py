# SPDX-License-Identifier: Apache-2.0
"""Numbers that lead nowhere or to two, in made-up directories."""

import pytest

from torpor.engine.errors import BadImage
from torpor.engine.images import references
from torpor.engine.images.directory import ImageDirectory
from torpor.engine.images.inventory import write_inventory
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.images.source import Source
from torpor.engine.images.writing import NewImageDirectory

IDS = pb.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1)
OWNER = pb.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0)


def pipe(number, pipe_id):
    entry = pb.pipe_entry(id=number, pipe_id=pipe_id, flags=0, fown=OWNER)
    return pb.file_entry(type=pb.PIPE, id=number, pipe=entry)


def unix(number, ino, peer, uflags=0):
    entry = pb.unix_sk_entry(
        id=number, ino=ino, type=1, state=1, flags=0, uflags=uflags, backlog=0, peer=peer, name=b"",
        fown=OWNER, opts=pb.sk_opts_entry(so_sndbuf=0, so_rcvbuf=0, so_snd_tmo_sec=0,
                                          so_snd_tmo_usec=0, so_rcv_tmo_sec=0, so_rcv_tmo_usec=0),
    )  # fmt: skip
    return pb.file_entry(type=pb.UNIXSK, id=number, usk=entry)


def data(pipe_id):
    return "pipes-data", pb.pipe_data_entry(pipe_id=pipe_id, bytes=1), b"x"


def checked(tmp_path, *entries):
    with NewImageDirectory.create(tmp_path / "x") as new:
        write_inventory(new, root_ids=IDS)
        for name, message, *payload in entries:
            new.add(name, message, *payload)
        new.finish(durable=False)
    with ImageDirectory.open(tmp_path / "x") as images:
        references.check(images, Source(images))


def test_what_fits(tmp_path):
    checked(tmp_path, ("files", pipe(1, 7)), ("files", pipe(2, 7)), data(7),
            ("files", unix(3, 30, 40)), ("files", unix(4, 40, 30)), ("files", unix(5, 50, 0)),
            ("files", unix(6, 60, 99, references.USK_EXTERN)))  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "subject"),
    [
        ([("files", pipe(1, 7)), data(8)], "pipes-data.img, pipe_id 8"),
        ([("files", pipe(1, 7)), data(7), data(7)], "pipes-data.img, pipe_id 7"),
        ([("files", unix(1, 30, 99))], "files.img, peer 99"),
        ([("files", unix(1, 30, 0)), ("files", unix(2, 30, 0))], "files.img, ino 30"),
        ([("memfd", pb.memfd_inode_entry(name=b"", uid=0, gid=0, size=0, shmid=1, seals=0,
                                         inode_id=5, mode=0))] * 2, "memfd.img, inode_id 5"),
    ],
)  # fmt: skip
def test_what_does_not(tmp_path, entries, subject):
    with pytest.raises(BadImage) as error:
        checked(tmp_path, *entries)
    assert error.value.subject == subject

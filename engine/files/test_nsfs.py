# SPDX-License-Identifier: Apache-2.0
import pytest

from torpor.engine.errors import BadImage, Refused
from torpor.engine.files.nsfs import IDS, KIND, NSFS_MAGIC, Namespace
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import (
    RecordedFd,
    RecordedImages,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId
from torpor.engine.tasks.encode import NAMESPACE_IDS


def view(link="net:[7]", own="net:[7]"):
    return RecordedFd(link=link, st_mode=0o100444, fs_magic=NSFS_MAGIC,
                      own_namespaces={"net": own})  # fmt: skip


def test_the_own_namespace():
    assert KIND.matches(view())
    states = {FileId(1): KIND.collect(view(), dump_context())}
    assert states == {1: Namespace(name="net", flags=0)}
    back, images = through_images(KIND, states)
    assert back == states
    [(_, entry)] = images.files("NS")
    assert (entry.ns_id, entry.ns_cflag) == (2, 0x40000000)
    assert "openat(-100, '/proc/self/ns/net', 0, 0)" in described(KIND, states, plan_context(1))


def test_ids_are_those_of_the_tasks():
    assert {f"{name}_ns_id": number for name, number in IDS.items()} == NAMESPACE_IDS


def test_limits():
    with pytest.raises(Refused):
        KIND.collect(view(own="net:[8]"), dump_context())


def test_bad_images():
    images = RecordedImages()
    entry = pb.ns_file_entry(id=1, ns_id=1, ns_cflag=3, flags=0)
    images.add("files", pb.file_entry(type=pb.NS, id=1, nsf=entry))
    with pytest.raises(BadImage):
        KIND.decode(images)

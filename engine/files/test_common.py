# SPDX-License-Identifier: Apache-2.0
"""Signal owners of images that no kernel had."""

import pytest

from torpor.engine.errors import BadImage
from torpor.engine.files.common import decode_owner
from torpor.engine.images.proto import criu_pb2 as pb


@pytest.mark.parametrize(("kind", "pid", "word"), [(3, 1, "kind"), (1, 1 << 22, "cannot be")])
def test_owners_that_cannot_be(kind, pid, word):
    with pytest.raises(BadImage, match=word):
        decode_owner(pb.fown_entry(uid=0, euid=0, signum=0, pid_type=kind, pid=pid))


def test_the_highest_owner():
    owner = decode_owner(pb.fown_entry(uid=0, euid=0, signum=0, pid_type=1, pid=(1 << 22) - 1))
    assert owner.pid == (1 << 22) - 1

# SPDX-License-Identifier: Apache-2.0
from torpor.engine.files import regular
from torpor.engine.files.common import O
from torpor.engine.files.socketpath import KIND
from torpor.engine.kernel.recorded import (
    RecordedFd,
    described,
    dump_context,
    plan_context,
    through_images,
)
from torpor.engine.kind import FileId
from torpor.engine.kinds import in_order_of_plans
from torpor.engine.sockets import unix


def view(**more):
    known = {
        "link": "/run/x.sock",
        "st_mode": 0o140755,
        "flags": int(O.PATH),
        "st_ino": 9,
        "st_dev": 0,
    }
    return RecordedFd(**(known | {"st_nlink": 1, "paths": {"/run/x.sock": (0, 9)}} | more))


def test_it_is_opened_after_the_sockets_have_their_names():
    one = view(flags=int(O.PATH | O.NOFOLLOW | O.CLOEXEC))
    assert KIND.matches(one)
    states = {FileId(1): KIND.collect(one, dump_context())}
    back, images = through_images(KIND, states)
    assert back == states
    assert regular.KIND.decode(images) == {}
    assert (
        described(KIND, back, plan_context(1))
        .splitlines()[0]
        .startswith("openat(-100, '/run/x.sock', 0x220100, 0)")
    )
    assert in_order_of_plans(KIND) > in_order_of_plans(unix.KIND)
    assert not KIND.late(back, plan_context(1))


def test_what_is_no_name_of_a_socket():
    assert not KIND.matches(view(st_mode=0o100644))
    assert not KIND.matches(view(link="socket:[9]", flags=2, paths={}))
    gone = view(link="/run/x.sock (deleted)", st_nlink=0, paths={})
    assert not KIND.matches(gone)
    assert regular.KIND.matches(gone)

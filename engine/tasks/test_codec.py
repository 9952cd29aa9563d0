# SPDX-License-Identifier: Apache-2.0
"""Trees through CRIU's messages and back; and messages that no dump has written."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures import trees
from tests.fixtures.compiled import compiled
from torpor.engine.errors import BadImage, Error
from torpor.engine.images.proto import criu_pb2 as pb
from torpor.engine.kernel.recorded import RecordedImages
from torpor.engine.memory.areas import Area, Backing
from torpor.engine.tasks.decode import decode_tree
from torpor.engine.tasks.encode import encode_tree
from torpor.engine.tasks.model import EndedThread, Tree
from torpor.engine.tasks.seccomp import Filter


def encoded(tree):
    images = RecordedImages()
    encode_tree(tree, images, trees.COMPONENTS, 100)
    return images


def decoded(images):
    return decode_tree(images, trees.COMPONENTS, trees.TEMPLATE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees.trees())
def test_round_trip(tree):
    back, tables = decoded(encoded(tree))
    assert back == tree
    assert set(tables) == {t.pid for t in tree.tasks if not t.zombie}
    assert compiled(back) > 0


def test_shared_tables_have_one_number():
    tree = trees.tree(trees.task(), trees.task(42, 41, files_of=41), trees.task(43, 41))
    back, tables = decoded(encoded(tree))
    assert back == tree
    assert tables[41] == tables[42] != tables[43]


def test_a_main_thread_that_has_ended():
    """CRIU is to know no state for it."""
    main = EndedThread(sigmask=1, nice=3, policy=1, priority=9, creds=trees.USER)
    one = trees.task(ended=main, exit_code=0x700, threads=(trees.thread(43), trees.thread(44)))
    images = encoded(trees.tree(one))
    ((core, _),) = images.entries("core-41")
    assert (core.tc.task_state, core.tc.exit_code, core.tc.comm) == (7, 0x700, b"worker")
    ((entry, _),) = images.entries("pstree")
    assert list(entry.threads) == [43, 44]
    assert decoded(images)[0] == trees.tree(one)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"exit_code": 9}, "wait status 0x9"),
        ({"threads": ()}, "no other"),
    ],
)
def test_a_main_thread_cannot_have_ended_so(more, text):
    main = EndedThread(sigmask=1, nice=3, policy=1, priority=9, creds=trees.USER)
    values = {"threads": (trees.thread(43),), "exit_code": 0x700} | more
    one = trees.task(ended=main, **values)
    with pytest.raises(BadImage, match=text):
        decoded(encoded(trees.tree(one)))


def test_a_path_is_one_file():
    tree = trees.tree(trees.task(), trees.task(42, 41))
    names = [m.name for _, m in encoded(tree).files("REG")]
    assert sorted(names) == [b"/", b"/bin/worker"]


def test_filters_are_chained_from_the_oldest():
    old, new, other = (Filter(program=bytes([n]) * 8, flags=0) for n in (1, 2, 3))
    members = (
        trees.thread(41, seccomp=(new, old)),
        trees.thread(42, seccomp=(other, old)),
        trees.thread(43),
    )
    tree = trees.tree(trees.task(threads=members))
    images = encoded(tree)
    ((message, _),) = images.entries("seccomp")
    chain = [(f.filter[0], f.HasField("prev") and f.prev) for f in message.seccomp_filters]
    assert chain == [(2, False), (1, 0), (3, False), (1, 2)]
    assert decoded(images)[0] == tree


# ---- messages that no dump has written


def changed(images, name, change):
    """Apply ``change`` to the first message of an image."""
    kind, raw, payload = images.images[name][0]
    message = kind.FromString(raw)
    change(message)
    images.images[name][0] = (kind, message.SerializePartialToString(), payload)
    return images


def assign(path, value):
    def change(message):
        *parts, last = path.split(".")
        for part in parts:
            message = message[int(part)] if part.isdigit() else getattr(message, part)
        setattr(message, last, value)

    return change


def extend(path, *values):
    def change(message):
        *parts, last = path.split(".")
        for part in parts:
            message = message[int(part)] if part.isdigit() else getattr(message, part)
        getattr(message, last).extend(values)

    return change


HOSTILE = {
    "another architecture": ("core-41", assign("mtype", pb.core_entry.AARCH64), "architecture"),
    "a state of none": ("core-41", assign("tc.task_state", 5), "state 5"),
    "ended root": ("core-41", assign("tc.task_state", 2), "has ended"),
    "compat registers": ("core-41", assign("thread_info.gpregs.mode", 2), "32-bit"),
    "half of the x87 state": (
        "core-41", lambda m: m.thread_info.fpregs.ClearField("st_space"), "not whole",
    ),
    "a component of another processor": (
        "core-41", assign("thread_info.fpregs.xsave.xstate_bv", 0xE7), "lacks",
    ),
    "a component without a field": (
        "core-41", assign("thread_info.fpregs.xsave.xstate_bv", 1 << 18), "component 18",
    ),
    "a long component": (
        "core-41", extend("thread_info.fpregs.xsave.ymmh_space", 7), "longer",
    ),
    "capabilities of 96 bits": ("core-41", extend("thread_core.creds.cap_eff", 1), "out of range"),
    "nice value": ("core-41", assign("thread_core.sched_nice", 300), "nice value"),
    "policy": ("core-41", assign("thread_core.sched_policy", (1 << 32) - 1), "out of range"),
    "parent-death signal": ("core-41", assign("thread_core.pdeath_sig", 65), "signal 65"),
    "signal stack": ("core-41", assign("thread_core.sas.ss_flags", 1 << 31), "out of range"),
    "interval": ("core-41", assign("tc.timers.real.isec", 1 << 63), "out of range"),
    "oom score": ("core-41", assign("tc.oom_score_adj", 5000), "oom_score_adj"),
    "exit code": ("core-41", assign("tc.exit_code", 1 << 20), "exit code"),
    "short siginfo": (
        "core-41", lambda m: m.thread_core.signals_p.signals.add(siginfo=b"\1"), "1 bytes",
    ),
    "siginfo without a signal": (
        "core-41", lambda m: m.tc.signals_s.signals.add(siginfo=bytes(128)), "no signal number",
    ),
    "a filter that is not there": (
        "core-41",
        lambda m: (assign("thread_core.seccomp_mode", pb.filter)(m),
                   assign("thread_core.seccomp_filter", 9)(m)),
        "leads nowhere",
    ),
    "exe that is not there": ("mm-41", assign("exe_file_id", 999), "not there"),
    "mapped file that is not there": ("mm-41", assign("vmas.0.shmid", 999), "not there"),
    "areas overlap": ("mm-41", assign("vmas.1.start", 0x401000), "overlaps"),
    "area upside down": ("mm-41", assign("vmas.1.end", 0x4FF000), "outside"),
    "area off a page": ("mm-41", assign("vmas.1.end", 0x503001), "outside"),
    "area of the kernel": ("mm-41", assign("vmas.2.end", (1 << 64) - 4096), "outside"),
    "absurd size": ("mm-41", assign("vmas.2.end", 1 << 62), "outside"),
    "absurd offset": ("mm-41", assign("vmas.0.pgoff", (1 << 63) - 4096), "behind the end"),
    "protection": ("mm-41", assign("vmas.1.prot", 0x1000003), "protection"),
    "advice that drops pages": ("mm-41", assign("vmas.1.madv", 1 << 4), "advice"),
    "auxiliary vector": ("mm-41", extend("mm_saved_auxv", *range(5000)), "auxiliary"),
    "working directory": ("fs-41", assign("cwd_id", 999), "not there"),
    "umask": ("fs-41", assign("umask", 0o7777), "umask"),
    "no such pid": ("pstree", assign("pid", 0), "core-0"),
    "absurd group": ("pstree", assign("pgid", 1 << 30), "group"),
    "its own thread": ("pstree", extend("threads", 99), "core-99"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name):
    image, change, word = HOSTILE[name]
    images = encoded(trees.tree())
    images.facts.clear()
    with pytest.raises(BadImage) as error:
        decoded(changed(images, image, change))
    text = str(error.value)
    assert word in text
    assert ".img" in text or "file 999" in text


@pytest.mark.parametrize("name", ["pstree", "core-41", "mm-41", "fs-41", "ids-41"])
def test_a_missing_file_is_named(name):
    images = encoded(trees.tree())
    del images.images[name]
    with pytest.raises(BadImage) as error:
        decoded(images)
    assert f"{name}.img" in str(error.value)


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ({"pid": 41, "ppid": 0}, {"pid": 41, "ppid": 41}, "twice"),
        ({"pid": 41, "ppid": 0}, {"pid": 42, "ppid": 43}, "before its parent"),
        ({"pid": 41, "ppid": 0}, {"pid": 42, "ppid": 42}, "before its parent"),
    ],
)
def test_cycles_of_parents(first, second, word):
    images = encoded(trees.tree())
    images.images["pstree"].clear()
    for one in (first, second):
        images.add("pstree", pb.pstree_entry(pgid=41, sid=41, **one))
    with pytest.raises(BadImage, match=word):
        decoded(images)


def test_a_child_of_a_zombie_and_a_tid_twice():
    with pytest.raises(BadImage, match="parent of task 43 has ended"):
        decoded(encoded(trees.tree(trees.task(), trees.zombie(42, 41), trees.task(43, 42))))
    twin = trees.task(42, 41, threads=(trees.thread(42), trees.thread(41)))
    with pytest.raises(BadImage, match="41 is there twice"):
        decoded(encoded(trees.tree(trees.task(), twin)))


def test_a_chain_of_filters_that_is_a_ring():
    images = encoded(trees.tree(trees.task(threads=(
        trees.thread(seccomp=(Filter(program=bytes(8), flags=0),)),))))  # fmt: skip
    changed(images, "seccomp", assign("seccomp_filters.0.prev", 0))
    with pytest.raises(BadImage, match="leads nowhere") as error:
        decoded(images)
    assert "seccomp.img" in str(error.value)


@pytest.mark.parametrize(
    "facts",
    [
        {"xstate": "not base64!"},
        {"xstate": 7},
        {"affinity": "zz"},
        {"affinity": 5},
        {"ioprio": "high"},
        {"timerslack_ns": [1]},
        {"ioprio": -1},
        {"timerslack_ns": 1 << 70},
        ["a list"],
        "text",
    ],
)
def test_our_own_facts_are_not_trusted_either(facts):
    images = encoded(trees.tree())
    images.extra("threads", "41", facts)
    with pytest.raises(BadImage) as error:
        decoded(images)
    assert "core-41.img" in str(error.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_flipped_only_bad_image_is_raised(data):
    """One byte of one message; what passes can still be planned."""
    images = encoded(trees.tree(trees.task(), trees.task(42, 41), trees.zombie(43, 41)))
    images.facts.clear()
    name = data.draw(
        st.sampled_from(sorted(n for n in images.images if n not in ("files", "seccomp")))
    )
    kind, raw, payload = images.images[name][0]
    at, value = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 255))
    try:
        damaged = kind.FromString(raw[:at] + bytes([value]) + raw[at + 1 :])
    except Exception:  # noqa: BLE001 - images.format tells of what is no message at all
        return
    images.images[name][0] = (kind, damaged.SerializePartialToString(), payload)
    try:
        back, _ = decoded(images)
        compiled(back)
    except Error:
        return


def test_compiling_an_ordinary_tree():
    areas = (*trees.AREAS[:2], Area(start=0x600000, end=0x700000, prot=1, backing=Backing.ANON,
                                    locked=True, advice=(10, 14)), trees.AREAS[2])  # fmt: skip
    assert compiled(Tree(tasks=(trees.task(memory=trees.memory(areas)),))) > 800

# SPDX-License-Identifier: Apache-2.0
"""Manifests: a round trip, and everything a hostile one may try."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.engine.errors import BadImage
from torpor.plugin.store.manifest import (
    CheckpointRef,
    Chunk,
    ContainerFacts,
    FileEntry,
    Head,
    Manifest,
    NodeFacts,
    decode,
    digest,
    encode,
)

REF = CheckpointRef(namespace="default", name="counter-1", uid="0f0c-11")


def head() -> Head:
    return Head(
        ref=REF,
        pod_name="counter",
        pod_uid="8a5b",
        created="2025-01-01T00:00:00Z",
        node=NodeFacts(
            name="a", kernel="6.18", arch="x86_64", cpu_flags_sha256="", engine_version="0.1.0"
        ),
        containers=(
            ContainerFacts(
                name="app", image="redis", image_id="sha256:1", tasks=3, memory_bytes=9,
                volumes=("data",),
            ),
        ),
        pod_template={"spec": {"containers": [{"name": "app", "ü": None}]}},
    )  # fmt: skip


def manifest() -> Manifest:
    chunk = Chunk(sha256="ab" * 32, size_bytes=7)
    return Manifest(
        head=head(),
        files=(
            FileEntry(path="images/app/core-1.img", size_bytes=14, mode=0o600, chunks=(chunk,) * 2),
            FileEntry(path="images/app/empty", size_bytes=0, mode=0o600, chunks=()),
        ),
    )


def test_round_trip_is_canonical():
    encoded = encode(manifest())
    assert decode(encoded) == manifest()
    assert encode(decode(encoded)) == encoded
    assert digest(encoded).startswith("sha256:")


def test_newer_version_says_so():
    document = json.loads(encode(manifest()))
    document["version"] = 2
    with pytest.raises(BadImage, match="version 2"):
        decode(json.dumps(document).encode())


HOSTILE_PATHS = [
    "", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a/.", "a/..", "a\0b", "\ud800",
    "a/", "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_paths_that_lead_elsewhere(path: str):
    document = json.loads(encode(manifest()))
    document["files"][0]["path"] = path
    with pytest.raises(BadImage):
        decode(json.dumps(document).encode())


def change(document, keys, value):
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


HOSTILE_FIELDS = [
    (["files", 0, "size"], 15),
    (["files", 0, "size"], True),
    (["files", 0, "size"], -1),
    (["files", 0, "mode"], 0o4755),
    (["files", 0, "chunks", 0], ["../../x", 7]),
    (["files", 0, "chunks", 0], ["AB" * 32, 7]),
    (["files", 0, "chunks", 0], ["ab" * 32, 1 << 40]),
    (["files", 0, "chunks", 0], ["ab" * 32]),
    (["files", 0, "chunks"], "ab"),
    (["files", 1, "path"], "images/app/core-1.img"),
    (["files", 1, "path"], "images/app/core-1.img/below"),
    (["files"], None),
    (["checkpoint", "namespace"], "../other"),
    (["checkpoint", "uid"], "a/b"),
    (["containers", 0, "name"], "../app"),
    (["containers", 0, "volumes"], ["a/b"]),
    (["node"], []),
    (["podTemplate"], "x"),
]


@pytest.mark.parametrize(("keys", "value"), HOSTILE_FIELDS)
def test_hostile_fields(keys, value):
    document = json.loads(encode(manifest()))
    change(document, keys, value)
    with pytest.raises(BadImage):
        decode(json.dumps(document).encode())


def test_every_field_is_needed():
    whole = json.loads(encode(manifest()))
    for key in whole:
        document = copy.deepcopy(whole)
        del document[key]
        with pytest.raises(BadImage):
            decode(json.dumps(document).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_junk_is_bad_image(data: bytes):
    with pytest.raises(BadImage):
        decode(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_byte_never_escapes(data):
    encoded = bytearray(encode(manifest()))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(encoded))
    except BadImage:
        return
    for entry in found.files:
        assert not entry.path.startswith("/")
        assert ".." not in entry.path.split("/")


def test_reference_paths():
    assert REF.path == "v1/checkpoints/default/counter-1-0f0c-11"
    for bad in ("..", "a/b", "", "A", "a..b", "-a"):
        with pytest.raises(BadImage):
            CheckpointRef(namespace=bad, name="a", uid="b")

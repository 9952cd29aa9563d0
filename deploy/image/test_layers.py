# SPDX-License-Identifier: Apache-2.0
"""Trees as OCI layers, and images built for real (as root)."""

import hashlib
import io
import json
import os
import stat
import tarfile

import pytest

from deploy.image import cache, layers, oci
from deploy.image.build import build_image
from deploy.image.dockerfile import parse
from deploy.image.process import BuildError
from deploy.image.progress import Progress


def members(tree):
    output = io.BytesIO()
    layers.write_tar(tree, output)
    output.seek(0)
    with tarfile.open(fileobj=output) as archive:
        return {member.name: member for member in archive}


def test_tree_digest_sees_names_modes_and_content(tmp_path):
    (tmp_path / "a").write_text("1")
    first = layers.digest_of_tree(tmp_path)
    os.utime(tmp_path / "a", (1, 1))
    assert layers.digest_of_tree(tmp_path) == first
    (tmp_path / "a").chmod(0o755)
    assert layers.digest_of_tree(tmp_path) != first


def test_tar_keeps_links_and_modes(tmp_path):
    (tmp_path / "d").mkdir(mode=0o750)
    (tmp_path / "d/file").write_text("text")
    (tmp_path / "d/file").chmod(0o640)
    (tmp_path / "d/hard").hardlink_to(tmp_path / "d/file")
    (tmp_path / "soft").symlink_to("d/file")
    found = members(tmp_path)
    assert found["d"].mode == 0o750
    assert found["d/file"].mode == 0o640
    assert found["d/hard"].islnk()
    assert found["soft"].linkname == "d/file"


@pytest.mark.root
def test_deletions_become_whiteouts(tmp_path):
    os.mknod(tmp_path / "gone", stat.S_IFCHR, os.makedev(0, 0))
    (tmp_path / "hidden").mkdir()
    os.setxattr(tmp_path / "hidden", "trusted.overlay.opaque", b"y")
    assert {".wh.gone", "hidden", "hidden/.wh..wh..opq"} == set(members(tmp_path))


def test_archive_is_whole(tmp_path):
    content = tmp_path / "layer.tar"
    content.write_bytes(b"layer")
    digest = f"sha256:{hashlib.sha256(b'layer').hexdigest()}"
    blob = layers.Blob(path=content, digest=digest, size_bytes=5)
    config = oci.Config(env={"A": "1"}, entrypoint=["/x"], user="1:1")
    top = oci.write_archive(tmp_path / "out", "localhost/x:dev", config, [blob, blob])
    with tarfile.open(tmp_path / "out") as archive:
        texts = {m.name: archive.extractfile(m).read() for m in archive}
    for name, text in texts.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(text).hexdigest() == name.rpartition("/")[2]
    entry = json.loads(texts["index.json"])["manifests"][0]
    assert entry["digest"] == top
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/x:dev"
    manifest = json.loads(texts["blobs/" + top.replace(":", "/")])
    image = json.loads(texts["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    assert image["config"] == {
        "Env": ["A=1"], "Entrypoint": ["/x"], "WorkingDir": "/", "User": "1:1",
    }  # fmt: skip
    assert len(manifest["layers"]) == len(image["rootfs"]["diff_ids"]) == 2


@pytest.mark.root
def test_copies_between_stages_follow_the_links_below(tmp_path, monkeypatch):
    """A file copied to /bin of a root where that is a link lands behind the link."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    context = tmp_path / "context"
    context.mkdir()
    (context / "tool").write_text("tool")
    base = tmp_path / "base"
    (base / "usr/bin").mkdir(parents=True)
    (base / "bin").symlink_to("usr/bin")
    below = [layers.Layer(key="base", tree=base)]
    first = layers.copy_layer(below, context, "/tool", "/bin/")
    assert (first.tree / "usr/bin/tool").read_text() == "tool"
    assert not (first.tree / "bin").exists()
    second = layers.copy_from_layers([], [*below, first], "/bin/tool", "/opt/renamed")
    assert (second.tree / "opt/renamed").read_text() == "tool"


@pytest.mark.root
def test_image_of_a_dockerfile(tmp_path, monkeypatch):
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    context = tmp_path / "context"
    (context / "sub").mkdir(parents=True)
    (context / "sub/a").write_text("a")
    (context / "sub/b.o").write_text("b")
    (context / ".dockerignore").write_text("**/*.o\n")
    file = context / "Dockerfile"
    file.write_text(
        'FROM scratch AS one\nCOPY sub /in\nFROM scratch\nCOPY --from=one /in/a /a\nCMD ["/a"]'
    )
    first = build_image(file, context, "localhost/t:1", Progress(quiet=True))
    assert build_image(file, context, "localhost/t:1", Progress(quiet=True)) == first
    (context / "sub/b.o").write_text("changed")
    assert build_image(file, context, "localhost/t:1", Progress(quiet=True)) == first
    (context / "sub/a").write_text("changed")
    assert build_image(file, context, "localhost/t:1", Progress(quiet=True)) != first
    assert not list(cache.home().glob("partial-*"))


@pytest.mark.root
def test_unknown_base_is_refused(tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_text("FROM alpine\n")
    assert parse(file.read_text())
    with pytest.raises(BuildError, match="only scratch, debian"):
        build_image(file, tmp_path, "localhost/t:1", Progress(quiet=True))

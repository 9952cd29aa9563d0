# SPDX-License-Identifier: Apache-2.0
"""The protobuf compiler's front: where modules land, and how a mistake is told."""

import re
from pathlib import Path

import pytest

from tools import protos


def test_modules_land_where_the_package_wants_them(tmp_path: Path):
    pytest.importorskip("grpc_tools")
    written = protos.generate(tmp_path)
    assert tmp_path / "engine/images/proto/criu_pb2.py" in written
    assert tmp_path / "engine/images/proto/criu_pb2.pyi" in written
    text = (tmp_path / "engine/images/proto/criu_pb2.py").read_text()
    assert "from torpor.engine.images.proto.process_pb2 import *" in text
    # code of 6.31 runs on the protobuf that pyproject.toml asks for
    assert re.search(r"Protobuf Python Version: 6\.31\.", text)


def test_a_mistake_is_told_in_the_compilers_words(tmp_path: Path, monkeypatch):
    pytest.importorskip("grpc_tools")
    (tmp_path / "engine").mkdir()
    (tmp_path / "plugin").mkdir()
    (tmp_path / "engine" / "wrong.proto").write_text('syntax = "proto2"; message {}')
    monkeypatch.setattr(protos, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match=r"wrong\.proto:1"):
        protos.generate(tmp_path)


def test_services_get_their_own_module(tmp_path: Path, monkeypatch):
    pytest.importorskip("grpc_tools")
    (tmp_path / "engine").mkdir()
    (tmp_path / "plugin" / "hook").mkdir(parents=True)
    (tmp_path / "plugin" / "hook" / "hook.proto").write_text(
        'syntax = "proto3"; package torpor.hook;\n'
        "message Nothing {}\nservice Hook { rpc Call(Nothing) returns (Nothing); }\n"
    )
    monkeypatch.setattr(protos, "ROOT", tmp_path)
    written = protos.generate(tmp_path)
    assert tmp_path / "plugin/hook/hook_pb2_grpc.py" in written

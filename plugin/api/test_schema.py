# SPDX-License-Identifier: Apache-2.0
"""CRDs: fresh, structural, and with the rules that the API server is to check."""

from typing import Any

import pytest
import yaml

from torpor.plugin.api import schema
from torpor.plugin.api.fields import JsonObject
from torpor.plugin.api.reasons import ConditionType, Reason
from torpor.plugin.api.v1alpha1 import Checkpoint, CheckpointStore, Restore

LOADED: dict[str, Any] = {name: yaml.safe_load(text) for name, text in schema.files().items()}


def _root(plural: str) -> JsonObject:
    version = LOADED[f"{plural}.yaml"]["spec"]["versions"][0]
    root: JsonObject = version["schema"]["openAPIV3Schema"]
    return root


def _walk(node: JsonObject, path: str = "") -> list[tuple[str, JsonObject]]:
    found = [(path, node)]
    for name, child in node.get("properties", {}).items():
        found += _walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            found += _walk(node[key], f"{path}[]")
    return found


@pytest.mark.parametrize("directory", schema.directories(), ids=lambda d: d.parent.name)
def test_generated_files_are_fresh(directory: Any) -> None:
    assert schema.stale(directory) == [], "run: python -m torpor.plugin.api.schema --write"


def test_stale_files_are_noticed(tmp_path: Any) -> None:
    assert schema.stale(tmp_path) == sorted(schema.files())
    for name, text in schema.files().items():
        (tmp_path / name).write_text(text)
    assert schema.stale(tmp_path) == []
    (tmp_path / "restores.yaml").write_text("changed")
    (tmp_path / "gone.yaml").write_text("kind of an older release")
    assert schema.stale(tmp_path) == ["gone.yaml", "restores.yaml"]


@pytest.mark.parametrize("plural", [m.PLURAL for m in (Checkpoint, Restore, CheckpointStore)])
def test_every_node_is_typed_and_bounded(plural: str) -> None:
    for path, node in _walk(_root(plural)):
        assert "type" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        bounded = {"maxLength", "enum", "format"} & node.keys()
        if node["type"] == "string" and path not in {".apiVersion", ".kind"}:
            assert bounded, f"{path} has no limit"


@pytest.mark.parametrize("plural", ["checkpoints", "restores"])
def test_spec_is_immutable(plural: str) -> None:
    rules = _root(plural)["properties"]["spec"]["x-kubernetes-validations"]
    assert "self == oldSelf" in [rule["rule"] for rule in rules]


def test_defaults_are_the_documented_ones() -> None:
    spec = _root("checkpoints")["properties"]["spec"]["properties"]
    assert spec["afterCheckpoint"]["default"] == "Continue"
    assert spec["timeout"]["default"] == "5m"
    assert spec["deletionPolicy"]["default"] == "Delete"
    assert spec["tcp"]["default"] == {}
    assert spec["tcp"]["properties"]["established"]["default"] == "Close"
    assert _root("checkpoints")["properties"]["spec"]["required"] == ["podRef"]


def test_conditions_are_a_map_by_type() -> None:
    for plural in ("checkpoints", "restores", "checkpointstores"):
        conditions = _root(plural)["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_pod_template_keeps_unknown_fields() -> None:
    status = _root("checkpoints")["properties"]["status"]["properties"]
    assert status["podTemplate"]["x-kubernetes-preserve-unknown-fields"] is True


def test_names_and_scope() -> None:
    for crd in LOADED.values():
        assert "torpor" in crd["spec"]["names"]["categories"]
        assert crd["spec"]["versions"][0]["subresources"] == {"status": {}}
    assert LOADED["checkpoints.yaml"]["spec"]["names"]["shortNames"] == ["tckpt"]
    assert LOADED["checkpointstores.yaml"]["spec"]["scope"] == "Cluster"


def test_columns_point_at_fields() -> None:
    for name, crd in LOADED.items():
        version = crd["spec"]["versions"][0]
        paths = {p for p, _ in _walk(version["schema"]["openAPIV3Schema"])}
        for column in version["additionalPrinterColumns"]:
            path = column["jsonPath"].split("[?")[0]
            assert path in paths or path.startswith(".metadata."), (name, column)


def test_every_reason_and_condition_is_documented() -> None:
    text = (schema.directories()[0].parent / "docs" / "api.md").read_text()
    missing = [name for name in (*Reason, *ConditionType) if str(name) not in text]
    assert missing == []

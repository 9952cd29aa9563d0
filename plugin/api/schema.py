# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401 (values of any JSON type)
"""CustomResourceDefinitions from the models.

``python -m torpor.plugin.api.schema --write`` writes ``crds/`` and the chart's copy;
``--check`` says whether they are fresh.
"""

import argparse
import dataclasses
import enum
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from torpor.plugin.api import codec
from torpor.plugin.api.common import GROUP, VERSION
from torpor.plugin.api.fields import JsonObject, Rule, info_of, json_name
from torpor.plugin.api.v1alpha1 import Checkpoint, CheckpointStore, Restore

HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# Written by torpor.plugin.api.schema; do not edit.
"""

Model = type[Checkpoint] | type[Restore] | type[CheckpointStore]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of ``kubectl get``; ``wide`` ones are shown with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crd:
    """What a definition has beyond its model."""

    model: Model
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    namespaced: bool = True
    rules: tuple[Rule, ...] = ()


def _condition(kind: str, part: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{part}'


READY = Column(name="Ready", path=_condition("Ready", "status"))
REASON = Column(name="Reason", path=_condition("Ready", "reason"))
MESSAGE = Column(name="Message", path=_condition("Ready", "message"), wide=True)
AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date")

SHORT_NAME = Rule(
    rule="self.metadata.name.size() <= 63",
    message="the name must be at most 63 characters, to fit in a label",
)

CRDS = (
    Crd(
        model=Checkpoint,
        short_names=("tckpt",),
        rules=(SHORT_NAME,),
        columns=(
            Column(name="Pod", path=".spec.podRef.name"),
            Column(name="Node", path=".status.nodeName"),
            READY,
            REASON,
            Column(name="Bytes", path=".status.sizeBytes", type="integer"),
            Column(name="Pause", path=".status.pause"),
            Column(name="Store", path=".status.storeName", wide=True),
            Column(name="Path", path=".status.path", wide=True),
            Column(name="Digest", path=".status.manifestDigest", wide=True),
            MESSAGE,
            AGE,
        ),
    ),
    Crd(
        model=Restore,
        short_names=("trst",),
        rules=(SHORT_NAME,),
        columns=(
            Column(name="Checkpoint", path=".spec.checkpointRef.name"),
            Column(name="Pod", path=".status.podName"),
            Column(name="Node", path=".status.nodeName"),
            READY,
            REASON,
            Column(name="Downtime", path=".status.downtime", wide=True),
            MESSAGE,
            AGE,
        ),
    ),
    Crd(
        model=CheckpointStore,
        short_names=("tstore",),
        namespaced=False,
        columns=(
            Column(name="Default", path=".spec.default", type="boolean"),
            READY,
            REASON,
            MESSAGE,
            AGE,
        ),
    ),
)


def definition(crd: Crd) -> JsonObject:
    """The CustomResourceDefinition object of a kind."""
    model = crd.model
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{model.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if crd.namespaced else "Cluster",
            "names": {
                "kind": model.KIND,
                "listKind": f"{model.KIND}List",
                "plural": model.PLURAL,
                "singular": model.KIND.lower(),
                "shortNames": list(crd.short_names),
                "categories": ["torpor"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in crd.columns],
                    "schema": {"openAPIV3Schema": _root_schema(crd)},
                }
            ],
        },
    }


def files() -> dict[str, str]:
    """Name and text of every generated file."""
    return {
        f"{crd.model.PLURAL}.yaml": HEADER
        + yaml.safe_dump(definition(crd), sort_keys=False, width=100)
        for crd in CRDS
    }


def directories() -> tuple[Path, ...]:
    """Where the files belong in a checkout."""
    root = Path(__file__).resolve().parents[2]
    return root / "crds", root / "deploy" / "helm" / "torpor" / "crds"


def stale(directory: Path) -> list[str]:
    """Names of files in ``directory`` that are not what the models say."""
    wanted = files()
    present = {path.name for path in directory.glob("*.yaml")}
    old = [n for n, text in wanted.items() if n not in present or _read(directory / n) != text]
    return sorted(old + list(present - wanted.keys()))


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the generated files."""
    parser = argparse.ArgumentParser(prog="torpor.plugin.api.schema", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write crds/ and the chart's copy")
    what.add_argument("--check", action="store_true", help="fail when a file is not fresh")
    options = parser.parse_args(argv)
    if options.write:
        for directory in directories():
            directory.mkdir(parents=True, exist_ok=True)
            for name, text in files().items():
                (directory / name).write_text(text, encoding="utf-8")
    old = {str(directory / name) for directory in directories() for name in stale(directory)}
    for path in sorted(old):
        sys.stderr.write(f"{path}: not fresh; run: python -m torpor.plugin.api.schema --write\n")
    return 1 if old else 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _column(column: Column) -> JsonObject:
    printed: JsonObject = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.wide:
        printed["priority"] = 1
    return printed


def _root_schema(crd: Crd) -> JsonObject:
    """Schema of a kind: its spec and status; metadata is the API server's own."""
    schema = object_schema(crd.model)
    schema["description"] = _doc(crd.model)
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": "Version of this schema."},
        "kind": {"type": "string", "description": "Kind of the object."},
        **schema["properties"],
        "metadata": {"type": "object"},
    }
    schema["required"] = ["spec"]
    schema["properties"]["status"].pop("default", None)
    return schema | _rules(crd.rules)


def object_schema(model: Any) -> JsonObject:
    """Structural schema of a model."""
    hints = codec.type_hints(model)
    properties: JsonObject = {}
    required: list[str] = []
    for field in dataclasses.fields(model):
        info = info_of(field)
        name = json_name(field.name)
        if codec.is_required(field):
            required.append(name)
        schema = _type_schema(codec.unwrap_optional(hints[field.name]), info.items)
        schema = {"description": info.text, **schema, **info.schema, **_rules(info.rules)}
        properties[name] = schema | _default(field)
    schema = {"type": "object", "properties": properties}
    return schema | ({"required": required} if required else {})


def _type_schema(hint: Any, items: JsonObject) -> JsonObject:
    simple: dict[Any, JsonObject] = {
        str: {"type": "string"},
        bool: {"type": "boolean"},
        int: {"type": "integer", "format": "int64"},
        datetime: {"type": "string", "format": "date-time"},
    }
    if hint in simple:
        return simple[hint]
    if dataclasses.is_dataclass(hint):
        return object_schema(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"type": "string", "enum": [member.value for member in hint]}
    if typing.get_origin(hint) is tuple:
        return {"type": "array", "items": _type_schema(typing.get_args(hint)[0], {}) | items}
    if typing.get_origin(hint) is dict:
        value = typing.get_args(hint)[1]
        if value is Any:
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        return {"type": "object", "additionalProperties": _type_schema(value, {}) | items}
    raise TypeError(f"no schema for {hint}")


def _default(field: "dataclasses.Field[Any]") -> JsonObject:
    """A default that the API server fills in: scalars, and objects made of defaults."""
    if field.default is not dataclasses.MISSING and field.default not in (None, (), ""):
        return {"default": codec.encode(field.default)}
    factory: object = field.default_factory
    return {"default": {}} if dataclasses.is_dataclass(factory) else {}


def _rules(rules: tuple[Rule, ...]) -> JsonObject:
    if not rules:
        return {}
    listed = [{"rule": rule.rule, "message": rule.message} for rule in rules]
    return {"x-kubernetes-validations": listed}


def _doc(model: type[Any]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())

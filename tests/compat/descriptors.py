# SPDX-License-Identifier: Apache-2.0
"""Prints what pycriu knows of the format, as JSON; runs in the Python of sid's CRIU."""

import importlib
import json
import pkgutil
import sys

import pycriu.images
from google.protobuf import descriptor_pb2
from pycriu.images import magic

found = descriptor_pb2.FileDescriptorSet()
seen = set()


def add(descriptor) -> None:
    if descriptor.name not in seen:
        seen.add(descriptor.name)
        for dependency in descriptor.dependencies:
            add(dependency)
        descriptor.CopyToProto(found.file.add())


for module in pkgutil.iter_modules(pycriu.images.__path__):
    if module.name.endswith("_pb2"):
        add(importlib.import_module(f"pycriu.images.{module.name}").DESCRIPTOR)
add(importlib.import_module("pycriu.rpc_pb2").DESCRIPTOR)
json.dump({"schema": found.SerializeToString().hex(), "magic": magic.by_name}, sys.stdout)

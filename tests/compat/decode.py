# SPDX-License-Identifier: Apache-2.0
"""Prints what pycriu decodes of images, by name, as JSON; runs in the Python of sid's CRIU."""

import json
import sys
from pathlib import Path

import pycriu.images
from google.protobuf.message import DecodeError

found = {}
for image in map(Path, sys.argv[1:]):
    with image.open("rb") as stream:
        try:
            found[image.name] = pycriu.images.load(stream)
        except (DecodeError, UnicodeDecodeError):
            found[image.name] = None
json.dump(found, sys.stdout, default=str)

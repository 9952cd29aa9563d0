# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of what is small, without OpenSSL.

Facts (CPython 3.11): hashlib loads OpenSSL's library, which takes a command 3 ms; what Python has
built in digests 150 to 250 MB/s, a tenth of OpenSSL. Images but for pages have some KiB each.
"""

import io
import os
import sys

try:
    from _sha256 import sha256 as _built_in  # type: ignore[import-not-found]
except ImportError:  # another Python has it under another name
    _built_in = None

SMALL_BYTES = 128 << 10


def of_bytes(content: bytes) -> str:
    """In hexadecimal digits."""
    return of_stream(io.BytesIO(content), len(content))


def of_file(stream: io.FileIO) -> str:
    """From where it stands to its end."""
    return of_stream(stream, os.fstat(stream.fileno()).st_size)


def of_stream(stream: io.BufferedIOBase | io.RawIOBase, size_bytes: int) -> str:
    """Of about so many bytes."""
    if size_bytes > SMALL_BYTES or _built_in is None or "_hashlib" in sys.modules:
        import hashlib

        return hashlib.file_digest(stream, "sha256").hexdigest()
    made = _built_in()
    while piece := stream.read(SMALL_BYTES):
        made.update(piece)
    return str(made.hexdigest())

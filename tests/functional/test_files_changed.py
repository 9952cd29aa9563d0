# SPDX-License-Identifier: Apache-2.0
"""Files that were changed between the dump and the restore."""

import pytest

from torpor.engine.errors import Error

pytestmark = [pytest.mark.functional, pytest.mark.root]


@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        (lambda data: data.chmod(0o640), (), "mode"),
        (lambda data: data.chmod(0o640), ("--skip-file-rwx-check",), ""),
        (lambda data: data.write_bytes(b"longer"), (), "bytes"),
        (lambda data: data.write_bytes(b"abc"), (), "bytes"),
        (lambda data: data.unlink(), (), "ENOENT"),
        (lambda data: (data.unlink(), data.mkdir()), (), "EISDIR|mode"),
    ],
)
def test_a_file_that_has_changed_meanwhile(start, change, words, told):
    live = start("files_flags", "created_exclusive")
    live.await_ready()
    live.dump()
    change(live.folder / "data")
    if not told:
        live.restore(words=words)
        return
    with pytest.raises(Error, match=told):
        live.restore(words=words)

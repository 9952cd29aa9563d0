# SPDX-License-Identifier: Apache-2.0
import hashlib
import subprocess
import sys

import pytest

from torpor.engine.images import sha256


@pytest.mark.parametrize("size", [0, 1, sha256.SMALL_BYTES, sha256.SMALL_BYTES + 1, 1 << 20])
@pytest.mark.parametrize("has_own", [True, False])
def test_as_hashlib_has_it(tmp_path, monkeypatch, size, has_own):
    if has_own:
        monkeypatch.delitem(sys.modules, "_hashlib", raising=False)
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "file").write_bytes(content)
    wanted = hashlib.sha256(content).hexdigest()
    assert sha256.of_bytes(content) == wanted
    with (tmp_path / "file").open("rb", buffering=0) as file:
        assert sha256.of_file(file) == wanted
        assert file.tell() == size


def test_openssl_is_not_loaded_for_what_is_small():
    code = (
        "import sys; from torpor.engine.images import sha256; sha256.of_bytes(b'x');"
        "print('_hashlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"

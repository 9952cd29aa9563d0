# SPDX-License-Identifier: Apache-2.0
"""Pages that were changed after the dump: the restore finds out before anything runs."""

import json
import subprocess
from pathlib import Path

import pytest

from torpor.engine import api
from torpor.engine.errors import BadImage
from torpor.engine.images import manifest
from torpor.engine.options import After, DumpOptions, RestoreOptions

pytestmark = pytest.mark.functional
LARGE = """import time
room = bytearray(b"x" * (8 << 20))
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def images(tmp_path):
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", LARGE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    place = tmp_path / "images"
    try:
        options = DumpOptions(pid=process.pid, images_dir=place, after=After.STOP)
        try:
            api.dump([options])
        except BaseException:
            process.kill()
            raise
    finally:
        process.wait()
    return process.pid, place


@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_a_flipped_bit_gives_up(images, where):
    pid, place = images
    pages = place / "pages-1.img"
    content = bytearray(pages.read_bytes())
    content[int(where * (len(content) - 1))] ^= 4
    pages.write_bytes(content)
    with pytest.raises(BadImage, match="digest differs"):
        api.restore(RestoreOptions(images_dir=place))
    assert not Path(f"/proc/{pid}").exists()


def test_digests_of_older_dumps_are_checked(images):
    pid, place = images
    old = manifest.decode((place / manifest.NAME).read_bytes())
    document = json.loads(manifest.encode(old))
    del document["digest"]
    document["version"] = 1
    document["files"]["pages-1.img"] = {
        "bytes": old.files["pages-1.img"].size_bytes,
        "sha256": "0" * 64,
    }
    document["digest"] = manifest._digest(document)
    (place / manifest.NAME).write_text(json.dumps(document))
    with pytest.raises(BadImage, match="digest differs"):
        api.restore(RestoreOptions(images_dir=place))
    assert not Path(f"/proc/{pid}").exists()

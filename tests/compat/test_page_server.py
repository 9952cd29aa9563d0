# SPDX-License-Identifier: Apache-2.0
"""Page servers and dumps of both makes with one another, plain and with TLS."""

import os
import shutil
import subprocess

import pytest

from tests.functional.conftest import start  # noqa: F401 (a fixture)
from tests.functional.test_incremental import OURS, criu, restored

pytestmark = [pytest.mark.root, pytest.mark.compat]
MAKE_CERTIFICATES = """
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 9 -subj /CN=ca
openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request -subj /CN=localhost
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > names
openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile names \
    -out cert.pem
"""


def certificates(folder):
    if shutil.which("openssl") is None:
        pytest.skip("this machine lacks openssl")
    subprocess.run(["sh", "-ec", MAKE_CERTIFICATES], cwd=folder, capture_output=True, check=True)
    words = {"--tls-cacert": "ca.pem", "--tls-cert": "cert.pem", "--tls-key": "key.pem"}
    return ["--tls", *(w for option, name in words.items() for w in (option, f"{folder}/{name}"))]


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("client", ["ours", "theirs"])
@pytest.mark.parametrize("server", ["ours", "theirs"])
def test_pages_go_to_a_server(criu_root, start, server, client, tls):  # noqa: F811
    programs = {"ours": OURS, "theirs": criu_root.criu()}
    live = start("cli_memory")
    live.await_ready()
    secret = certificates(live.folder) if tls else []
    port = str(free_port())
    (live.folder / "pages").mkdir()
    ready, tell = os.pipe()
    words = ["-D", "pages", "--address", "127.0.0.1", "--port", port, "--status-fd", str(tell)]
    serving = subprocess.Popen(
        [*programs[server], "page-server", *words, "-o", "server.log", "-v4", *secret],
        cwd=live.folder,
        pass_fds=[tell],
        stdin=subprocess.DEVNULL,
    )
    os.close(tell)
    assert os.read(ready, 1) == b"\0"
    os.close(ready)
    host = "localhost" if tls else "127.0.0.1"
    words = ["-t", str(live.pid), "--page-server", "--address", host, "--port", port]
    words += ["--network-lock", "skip", *secret]
    criu(live, "dump", "images", *words, program=programs[client])
    assert serving.wait(20) == 0
    live.reap(live.pids)
    assert not list((live.folder / "images").glob("pages-*"))
    for path in (live.folder / "pages").glob("page*.img"):
        path.rename(live.folder / "images" / path.name)
    restored(live, "images")


def test_a_server_writes_among_the_images_again(start):  # noqa: F811
    live = start("cli_memory")
    live.await_ready()
    for more in (["-R"], []):
        port = str(free_port())
        words = ["-D", "images", "--address", "127.0.0.1", "--port", port]
        (live.folder / "images").mkdir(exist_ok=True)
        subprocess.run([*OURS, "page-server", *words, "-d"], cwd=live.folder, check=True)
        words += ["-t", str(live.pid), "--page-server", "--network-lock", "skip", *more]
        subprocess.run([*OURS, "dump", *words], cwd=live.folder, check=True)
    live.reap(live.pids)
    restored(live, "images")

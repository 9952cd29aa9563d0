# SPDX-License-Identifier: Apache-2.0
import socket
import threading

import pytest

from torpor.engine.errors import BadImage, KernelError
from torpor.engine.images import pageserver
from torpor.engine.images.pages import PAGE_BYTES, PageFlags, PageRun
from torpor.engine.images.pageserver import REQUEST, Client, Server

RUN = PageRun(vaddr=0x10000, page_count=2)


@pytest.fixture
def pair():
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_what_is_sent_is_written(tmp_path, pair):
    served = threading.Thread(target=Server(tmp_path).serve, args=(pair[1],))
    served.start()
    client = Client(pair[0])
    assert not client.begin("pagemap-41")
    client.add(RUN, [b"a" * 4096, b"a" * (RUN.size_bytes - 4096)])
    client.add(PageRun(vaddr=RUN.end, page_count=1, flags=PageFlags.PARENT))
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "pagemap-shmem-7.img").touch()
    assert client.begin("pagemap-shmem-7")
    client.end()
    served.join()
    assert (tmp_path / "pages-65537.img").read_bytes() == b"a" * RUN.size_bytes
    assert (tmp_path / "pages-65538.img").read_bytes() == b""
    assert (tmp_path / "pagemap-41.img").stat().st_size > 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        REQUEST.pack(77, 0, 0, 0, 0, 0),
        REQUEST.pack(pageserver.ADD, 4, 0, 1, 0, 41 << 8 | 1),
        REQUEST.pack(pageserver.OPEN, 0, 0, 0, 0, 41 << 8 | 9),
        REQUEST.pack(pageserver.OPEN, 0, 0, 0, 0, 41 << 8 | 1)
        + REQUEST.pack(pageserver.ADD, 4, 0, 1, 5, 41 << 8 | 1),
        REQUEST.pack(pageserver.OPEN, 0, 0, 0, 0, 41 << 8 | 1)
        + REQUEST.pack(pageserver.ADD, 4, 0, 1, PAGE_BYTES, 41 << 8 | 1)
        + b"short",
        b"",
        b"half",
    ],
)
def test_nonsense_is_refused(tmp_path, pair, request_bytes):
    pair[0].sendall(request_bytes)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(BadImage):
        Server(tmp_path).serve(pair[1])


def test_a_server_that_fails_is_told(pair):
    pair[1].sendall((-28).to_bytes(4, "little", signed=True))
    with pytest.raises(KernelError, match="ENOSPC"):
        Client(pair[0]).end()

# SPDX-License-Identifier: Apache-2.0
"""`--stream`: images go to criu-image-streamer when a dump has them all, and come from it.

Facts (documentation and sources of criu-image-streamer, Apache-2.0; criu 4.2.1, tried with a peer
of ours): the streamer listens in the image directory, at streamer-capture.sock for one dump or at
streamer-serve.sock for one restore. A request is 32 bits of length, little-endian, and an
img_streamer_request_entry with the name of a file. On a dump one byte follows that carries
(SCM_RIGHTS) the end of a pipe out of which the streamer reads the file. On a restore it answers in
the same form whether it has that file; if so, it is given the end of a pipe that it writes to. It
has each file once, and cannot list them. The end of the connection is that of the images.

The images are whole in a directory of ours, inside of the image directory, before the first is
sent, and as long as the command runs; nothing of them stays. The tasks stand still until the
streamer has read everything, and run on when it fails.
"""

import array
import fcntl
import os
import select
import shutil
import socket
import struct
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from google.protobuf.message import DecodeError

from torpor.engine import logs
from torpor.engine.criu.session import Session
from torpor.engine.errors import BadImage, KernelError, Refused
from torpor.engine.images import manifest
from torpor.engine.images.failures import translated
from torpor.engine.images.kinds import BY_STEM, file_name
from torpor.engine.images.proto import criu_pb2 as pb

CAPTURE, SERVE = "streamer-capture.sock", "streamer-serve.sock"
PART = "incomplete-stream-"
LENGTH = struct.Struct("<I")
MOST_REPLY = 10 << 10
CHUNK = 1 << 20
ELSEWHERE = ("prev_images_dir", "lazy_pages", "page_server", "auto_dedup")
"""Options that need images in directories."""
WHOM = "criu-image-streamer"

log = logs.logger(__name__)


def check(session: Session) -> None:
    """Whether all options go together.

    Raises: Refused.
    """
    for key in ELSEWHERE:
        if session.line.flag(key):
            raise Refused("cannot be used together", subject=f"--stream, --{key.replace('_', '-')}",
                          remedy="leave out one of them")  # fmt: skip


class Streamer:
    """A connection to criu-image-streamer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, path: Path) -> None:
        """Give it a file, and wait until it has read all.

        Raises: KernelError when it has gone.
        """
        ours, theirs = self._ask(path.name, reads=True)
        with translated(f"send {path.name} to", WHOM), os.fdopen(ours, "wb", 0) as pipe:
            self._give(theirs)
            with path.open("rb") as file:
                while os.splice(file.fileno(), pipe.fileno(), CHUNK):
                    pass
            _await_empty(pipe.fileno())

    def receive(self, name: str, folder: Path) -> bool:
        """Have a file of it; False when it has none of that name."""
        ours, theirs = self._ask(name, reads=False)
        with translated(f"receive {name} from", WHOM), os.fdopen(ours, "rb", 0) as pipe:
            exists = self._exists()
            if not exists:
                os.close(theirs)
                return False
            self._give(theirs)
            with (folder / name).open("xb") as file:
                while os.splice(pipe.fileno(), file.fileno(), CHUNK):
                    pass
        return True

    def _ask(self, name: str, *, reads: bool) -> tuple[int, int]:
        """Ask for a file; our end of a pipe, and the streamer's."""
        request = pb.img_streamer_request_entry(filename=name).SerializeToString()
        reading, writing = os.pipe()
        try:
            with translated(f"tell of {name} to", WHOM):
                self._connection.sendall(LENGTH.pack(len(request)) + request)
        except BaseException:
            os.close(reading)
            os.close(writing)
            raise
        return (writing, reading) if reads else (reading, writing)

    def _give(self, fd: int) -> None:
        try:
            socket.send_fds(self._connection, [b"\0"], [fd])
        finally:
            os.close(fd)

    def _exists(self) -> bool:
        head = self._connection.recv(LENGTH.size, socket.MSG_WAITALL)
        size = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else MOST_REPLY + 1
        text = self._connection.recv(size, socket.MSG_WAITALL) if size <= MOST_REPLY else b""
        try:
            return pb.img_streamer_reply_entry.FromString(text).exists
        except DecodeError as error:
            raise BadImage("gave no answer", subject=WHOM, remedy="see what it tells") from error


def _await_empty(pipe: int) -> None:
    """Until the other side has read everything.

    Raises: OSError when it has gone.
    """
    waiting = array.array("i", [1])
    watch = select.poll()
    watch.register(pipe, 0)
    while True:
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)
        if not waiting[0]:
            return
        if watch.poll(0):
            raise BrokenPipeError(32, "the streamer does not read on")
        time.sleep(0.001)


@contextmanager
def connected(session: Session, name: str) -> Iterator[tuple[Streamer, Path]]:
    """A connection, and a directory for images that is taken away afterwards.

    Raises: Refused when nobody listens.
    """
    check(session)
    place = session.images_dir / name
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with translated("connect to", f"{place} ({WHOM})"):
                connection.connect(os.path.relpath(place) if len(str(place)) > 100 else str(place))
        except KernelError as error:
            raise Refused("criu-image-streamer does not listen", subject=str(place),
                          cause=os.strerror(error.errno),
                          remedy="start it on the same image directory") from error  # fmt: skip
        with translated("make a directory in", str(session.images_dir)):
            folder = Path(tempfile.mkdtemp(prefix=PART, dir=session.images_dir))
        try:
            yield Streamer(connection), folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def send_all(streamer: Streamer, folder: Path) -> None:
    """Give away all files of a dump."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in names:
        streamer.send(folder / name)
    log.info("%d files streamed", len(names))


@contextmanager
def received(session: Session) -> Iterator[Session]:
    """The same session with all images in a directory of ours."""
    with connected(session, SERVE) as (streamer, folder):
        if streamer.receive(manifest.NAME, folder):
            for name in manifest.decode((folder / manifest.NAME).read_bytes()).files:
                if not streamer.receive(name, folder):
                    raise BadImage("is not in the stream", subject=name,
                                   remedy="take the stream from an intact copy")  # fmt: skip
        else:
            _receive_by_search(streamer, folder)
        yield replace(session, images_dir=folder)


def _receive_by_search(streamer: Streamer, folder: Path) -> None:
    """Images of CRIU: each tells which others there are."""
    for names in (_once, _of_tasks, _of_their_tables, _of_pages):
        for name in dict.fromkeys(names(folder)):
            streamer.receive(file_name(name), folder)


def _once(_: Path) -> Iterator[str]:
    yield from BY_STEM
    for kind in ("timens", "utsns", "ipcns-var", "ipcns-msg", "ipcns-sem", "ipcns-shm", "netns"):
        yield from (f"{kind}-{number}" for number in range(32))


def _of_tasks(folder: Path) -> Iterator[str]:
    from torpor.engine.images.directory import ImageDirectory, Verify

    with ImageDirectory.open(folder, verify=Verify.NOTHING) as images:
        for task in images.messages("pstree", pb.pstree_entry):
            yield from (f"{kind}-{task.pid}" for kind in ("ids", "mm", "fs", "pagemap"))
            yield from (f"core-{thread}" for thread in (task.pid, *task.threads))
        for remap in images.messages("remap-fpath", pb.remap_file_path_entry):
            yield f"ghost-file-{remap.remap_id:x}"
        for file in images.messages("files", pb.file_entry):
            if file.HasField("isk"):
                yield f"tcp-stream-{file.isk.ino:x}"
        for memory in images.messages("memfd", pb.memfd_inode_entry):
            yield f"pagemap-shmem-{memory.shmid}"


def _of_their_tables(folder: Path) -> Iterator[str]:
    from torpor.engine.images.directory import ImageDirectory, Verify

    with ImageDirectory.open(folder, verify=Verify.NOTHING) as images:
        for name in images.names:
            for ids in images.messages(name, pb.task_kobj_ids_entry) if "ids-" in name else ():
                yield f"fdinfo-{ids.files_id}"
            for memory in images.messages(name, pb.mm_entry) if name.startswith("mm-") else ():
                for area in memory.vmas:
                    if area.shmid:
                        yield f"pagemap-shmem-{area.shmid}"


def _of_pages(folder: Path) -> Iterator[str]:
    from torpor.engine.images.directory import ImageDirectory, Verify

    with ImageDirectory.open(folder, verify=Verify.NOTHING) as images:
        for name in images.names:
            if name.startswith("pagemap-"):
                for head in images.messages(name, pb.pagemap_head):
                    yield f"pages-{head.pages_id}"

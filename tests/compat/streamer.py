# SPDX-License-Identifier: Apache-2.0
"""A peer that speaks criu-image-streamer's protocol, and keeps images in memory."""

import os
import socket
import struct
import threading
from pathlib import Path

from torpor.engine.images.proto import criu_pb2 as pb

PATIENCE_S = 60


class Streamer(threading.Thread):
    """Takes the images of one dump, or gives those of ``images`` to one restore."""

    def __init__(self, folder: Path, images: dict[str, bytes] | None = None) -> None:
        super().__init__(daemon=True)
        self.gives = images is not None
        self.images = dict(images or {})
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.settimeout(PATIENCE_S)
        self.path = folder / ("streamer-serve.sock" if self.gives else "streamer-capture.sock")
        self.listening.bind(str(self.path))
        self.listening.listen(1)
        self.start()

    def run(self) -> None:
        try:
            connection, _ = self.listening.accept()
        except OSError:
            return
        readers = []
        with connection:
            while head := connection.recv(4, socket.MSG_WAITALL):
                text = connection.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL)
                name = pb.img_streamer_request_entry.FromString(text).filename
                if self.gives:
                    self.give(connection, name)
                    continue
                # CRIU writes several files at once, into pipes that hold little
                reader = threading.Thread(target=self.take, args=(name, self.pipe(connection)))
                reader.start()
                readers.append(reader)
        for reader in readers:
            reader.join(PATIENCE_S)

    def take(self, name: str, fd: int) -> None:
        with open(fd, "rb") as pipe:
            self.images[name] = pipe.read()

    def give(self, connection: socket.socket, name: str) -> None:
        content = self.images.pop(name, None)
        reply = pb.img_streamer_reply_entry(exists=content is not None).SerializeToString()
        connection.sendall(struct.pack("<I", len(reply)) + reply)
        if content is not None:
            with open(self.pipe(connection), "wb") as pipe:
                pipe.write(content)

    def pipe(self, connection: socket.socket) -> int:
        _, fds, _, _ = socket.recv_fds(connection, 1, 1)
        return fds[0]

    def end(self) -> dict[str, bytes]:
        """What it has when the other side has ended."""
        self.join(PATIENCE_S)
        assert not self.is_alive()
        self.close()
        return self.images

    def close(self) -> None:
        self.listening.close()
        if self.path.exists():
            os.unlink(self.path)

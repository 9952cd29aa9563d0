# SPDX-License-Identifier: Apache-2.0
"""A program with much memory that it writes to all the time, and that knows whether it is whole.

`serve MIB PAGES`: so many MiB, and so many pages of them written a second, with content that no
compressor makes smaller. Each page has the number of its writes and a sum over all of it; the
program counts writes as well. So memory from several instants does not fit together. `show` asks
it; the longest pause is the longest time in which it was not scheduled since it was asked last.
"""

import json
import mmap
import os
import random
import socket
import struct
import sys
import time
import zlib

PORT = 8080
PAGE = 4096
HEAD = struct.Struct("<QI")
TICK_S = 0.005


class Ledger:
    def __init__(self, mib, pages_s):
        self.memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.count = (mib << 20) // PAGE
        self.pages_s = pages_s
        self.identity = os.urandom(8).hex()
        self.written = self.longest_s = 0
        for page in range(self.count):
            self.write(page, 0)

    def write(self, page, number):
        filling = os.urandom(PAGE - HEAD.size)
        head = HEAD.pack(number, zlib.crc32(filling, number))
        self.memory[page * PAGE : (page + 1) * PAGE] = head + filling

    def again(self):
        page = random.randrange(self.count)
        number, _ = HEAD.unpack_from(self.memory, page * PAGE)
        self.write(page, number + 1)
        self.written += 1

    def is_whole(self):
        total = 0
        for at in range(0, self.count * PAGE, PAGE):
            number, digest = HEAD.unpack_from(self.memory, at)
            if digest != zlib.crc32(self.memory[at + HEAD.size : at + PAGE], number):
                return False
            total += number
        return total == self.written

    def answer(self):
        found = {
            "identity": self.identity,
            "written": self.written,
            "whole": self.is_whole(),
            "longest_s": self.longest_s,
        }
        self.longest_s = 0
        return json.dumps(found).encode()

    def attend(self, client):
        """A probe only connects, and asks nothing."""
        client.settimeout(1)
        try:
            if client.recv(1):
                client.sendall(self.answer())
        except OSError:  # it has gone
            pass

    def serve(self):
        with socket.create_server(("", PORT)) as server:
            server.settimeout(TICK_S)
            due, last_s = 0.0, time.monotonic()
            while True:
                try:
                    client, _ = server.accept()
                    with client:
                        self.attend(client)
                    last_s = time.monotonic()
                except TimeoutError:
                    pass
                now_s = time.monotonic()
                self.longest_s = max(self.longest_s, now_s - last_s)
                due = min(due + (now_s - last_s) * self.pages_s, self.pages_s * 0.1)
                last_s = now_s
                while due >= 1:
                    self.again()
                    due -= 1


def show():
    with socket.create_connection(("127.0.0.1", PORT), 20) as connection:
        connection.sendall(b"?")
        print(connection.makefile().read())


if sys.argv[1] == "show":
    show()
else:
    Ledger(int(sys.argv[2]), int(sys.argv[3])).serve()

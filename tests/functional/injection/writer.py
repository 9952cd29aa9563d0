# SPDX-License-Identifier: Apache-2.0
"""Writes to pages of its room as its standard input says, and knows what must be in them."""

import ctypes
import os
import sys
import time

PAGE = 4096
SIZE = 64 * PAGE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = LIBC.mremap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
LIBC.mremap.argtypes = (ctypes.c_void_p, *(ctypes.c_size_t,) * 2, ctypes.c_int, ctypes.c_void_p)
LIBC.mprotect.argtypes = LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
MADV_NOHUGEPAGE, MADV_DONTNEED = 15, 4
FIXED, PRIVATE, ANONYMOUS = 0x10, 0x2, 0x20


class Room:
    """An area with nothing beside it, and what is in its pages."""

    def __init__(self):
        around = LIBC.mmap(None, SIZE + 2 * PAGE, 0, PRIVATE | ANONYMOUS, -1, 0)
        self.start = LIBC.mmap(around + PAGE, SIZE, 3, FIXED | PRIVATE | ANONYMOUS, -1, 0)
        LIBC.madvise(self.start, SIZE, MADV_NOHUGEPAGE)
        self.count, self.known = 0, {}

    def where(self):
        return f"{self.start} {self.start + SIZE}"

    def page(self, number):
        return self.start + int(number) * PAGE

    def write(self, *numbers):
        for number in numbers:
            self.count += 1
            ctypes.memmove(self.page(number), content(self.count), PAGE)
            self.known[number] = self.count
        return "ok"

    def forget(self, number):
        LIBC.madvise(self.page(number), PAGE, MADV_DONTNEED)
        self.known.pop(number, None)
        return "ok"

    def protect(self, number):
        return str(LIBC.mprotect(self.page(number), PAGE, 1))

    def unprotect(self, number):
        return str(LIBC.mprotect(self.page(number), PAGE, 3))

    def check(self):
        for number, value in self.known.items():
            if ctypes.string_at(self.page(number), PAGE) != content(value):
                return f"page {number} differs"
        return "ok"

    def move(self):
        """To another place, so that nothing is at the old one."""
        space = LIBC.mmap(None, SIZE + 2 * PAGE, 0, PRIVATE | ANONYMOUS, -1, 0)
        self.start = LIBC.mremap(self.start, SIZE, SIZE, 3, space + PAGE)
        return self.where()

    def fork(self):
        child = os.fork()
        if child == 0:
            while True:
                time.sleep(10)
        return str(child)

    def direct(self, path):
        try:
            os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            return "no"
        return "ok"


def content(value):
    return value.to_bytes(8, "little") * (PAGE // 8)


room = Room()
for line in sys.stdin:
    word, *rest = line.split()
    print(getattr(room, word)(*rest), flush=True)

# SPDX-License-Identifier: Apache-2.0
"""A Python program of five threads which hand a number round through pipes, and never lose it."""

import os
import threading
import time

from files_base import workload

THREADS = 5


def body(place):
    pipes = [os.pipe() for _ in range(THREADS)]
    rounds = [0] * THREADS
    wrong = []

    def hand_on(index):
        expected = index
        while True:
            number = int.from_bytes(os.read(pipes[index][0], 8), "little")
            if number != expected:
                wrong.append(f"thread {index} got {number}, expected {expected}")
            expected = number + THREADS
            rounds[index] += 1
            time.sleep(0.001)
            os.write(pipes[(index + 1) % THREADS][1], (number + 1).to_bytes(8, "little"))

    for index in range(THREADS):
        threading.Thread(target=hand_on, args=(index,), daemon=True).start()
    os.write(pipes[0][1], bytes(8))
    time.sleep(0.1)
    yield
    before = list(rounds)
    time.sleep(0.3)
    assert not wrong, wrong
    assert all(now > then for now, then in zip(rounds, before, strict=True)), (before, rounds)


if __name__ == "__main__":
    workload(body)

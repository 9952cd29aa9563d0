# SPDX-License-Identifier: Apache-2.0
"""Descriptors 0, 1 and 2 of a program whose caller has closed them.

A descriptor that is opened next would get such a number: a log would be read as stdin, and a task
that is restored would lose it again. Python has None in place of the stream then.
"""

import os
import sys


def complete() -> None:
    """Open /dev/null for each that is closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))

# SPDX-License-Identifier: Apache-2.0
"""Rows that Python packs are as long as the structs that C reads."""

import pytest

from torpor.engine.native import asked, calls, descriptors, threads
from torpor.engine.native.seam import ffi


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (asked.ROW, "struct seam_asked"),
        (calls.ROW, "struct seam_borrow"),
        (descriptors.ROW, "struct seam_fd"),
        (threads.ROW, "struct seam_facts"),
    ],
)
def test_rows_are_structs(row, name):
    assert row.size == ffi.sizeof(name)

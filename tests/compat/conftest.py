# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the compatibility tests."""

import os

import pytest

from .criu_root import CriuRoot, Unavailable
from .criu_root import criu_root as build


@pytest.fixture(scope="session")
def criu_root() -> CriuRoot:
    """Debian sid's CRIU, ready to run."""
    if os.geteuid() != 0:
        pytest.skip("CRIU needs root")
    try:
        return build()
    except Unavailable as missing:
        pytest.skip(f"sid's CRIU cannot be had: {missing}")

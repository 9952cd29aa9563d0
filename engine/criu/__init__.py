# SPDX-License-Identifier: Apache-2.0
"""The `criu` name: CRIU's command line in front of this engine."""

from torpor.engine.criu.entry import main

__all__ = ["main"]

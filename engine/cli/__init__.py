# SPDX-License-Identifier: Apache-2.0
"""The `torpor` command."""

from torpor.engine.cli.entry import main

__all__ = ["main"]

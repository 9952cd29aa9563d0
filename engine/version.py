# SPDX-License-Identifier: Apache-2.0
"""Version numbers, without the cost of importlib.metadata; a test holds them to pyproject.toml."""

VERSION = "0.1.0"
CRIU_VERSION = "4.2"
"""Release of CRIU whose images and options are spoken."""

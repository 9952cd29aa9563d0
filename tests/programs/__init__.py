# SPDX-License-Identifier: Apache-2.0
"""Real programs with real clients, moved twice while they are at work."""

# SPDX-License-Identifier: Apache-2.0
"""Builds container images without a daemon; run as `python3 deploy/image` it builds torpor's own.

Standard library only, because it runs before any virtual environment exists.
"""

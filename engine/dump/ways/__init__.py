# SPDX-License-Identifier: Apache-2.0
"""Ways to take the memory of a tree: one module each, with the interface of `way.py`."""

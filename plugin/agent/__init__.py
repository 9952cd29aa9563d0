# SPDX-License-Identifier: Apache-2.0
"""The node agent: acts on objects of its own node."""

# SPDX-License-Identifier: Apache-2.0
"""Kinds of descriptors that are not sockets."""

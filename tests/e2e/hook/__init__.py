# SPDX-License-Identifier: Apache-2.0
"""The runtime hook and the pid helper on a real node."""

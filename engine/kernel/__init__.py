# SPDX-License-Identifier: Apache-2.0
"""Facts about the kernel and readers of its files; no policy."""

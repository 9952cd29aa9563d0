# SPDX-License-Identifier: Apache-2.0
"""From an image directory to a running tree."""

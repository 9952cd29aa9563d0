# SPDX-License-Identifier: Apache-2.0
"""From a running tree to an image directory."""

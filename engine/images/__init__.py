# SPDX-License-Identifier: Apache-2.0
"""The image directory: CRIU's format on the outside, checked on the way in."""

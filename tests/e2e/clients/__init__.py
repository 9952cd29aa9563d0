# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests run as pods, and the real clients that ask them for their state."""

# SPDX-License-Identifier: Apache-2.0
"""The images that the tests run as pods."""

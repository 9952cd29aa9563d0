# SPDX-License-Identifier: Apache-2.0
"""kubectl torpor."""

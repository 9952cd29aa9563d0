# SPDX-License-Identifier: Apache-2.0
"""Memory that is filled while its tasks run already."""

# SPDX-License-Identifier: Apache-2.0
"""What puts torpor on a cluster: its image and its chart."""

# SPDX-License-Identifier: Apache-2.0
"""Programs built from native/: the executor and the static helpers."""

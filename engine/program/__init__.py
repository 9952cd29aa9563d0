# SPDX-License-Identifier: Apache-2.0
"""Programs: flat lists of operations that the executor runs inside a task."""

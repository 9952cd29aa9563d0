# SPDX-License-Identifier: Apache-2.0
"""torpor.engine checkpoints and restores a tree of tasks; it knows no Kubernetes."""

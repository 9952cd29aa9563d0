# SPDX-License-Identifier: Apache-2.0
"""torpor.plugin: Kubernetes and container runtimes on top of torpor.engine."""

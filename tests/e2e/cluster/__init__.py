# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes cluster on one machine; run as `python3 tests/e2e/cluster up`.

Standard library only, because it runs before any virtual environment exists.
"""

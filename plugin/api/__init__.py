# SPDX-License-Identifier: Apache-2.0
"""API group torpor.dev: models, conditions, schemas."""

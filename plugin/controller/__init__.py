# SPDX-License-Identifier: Apache-2.0
"""The controller: resolves, assigns, creates target pods."""

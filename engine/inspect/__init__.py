# SPDX-License-Identifier: Apache-2.0
"""Reading an image directory for people: what is in it, and what a restore would do."""

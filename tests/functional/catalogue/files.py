# SPDX-License-Identifier: Apache-2.0
"""Descriptors of files: paths, unlinked ones, locks, owners, notification, queues."""

from tests.functional.catalogue.case import Case

CASES: tuple[Case, ...] = ()

# SPDX-License-Identifier: Apache-2.0
"""Sockets of every family."""

from tests.functional.catalogue.case import Case

CASES: tuple[Case, ...] = ()

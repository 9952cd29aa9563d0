# SPDX-License-Identifier: Apache-2.0
"""Terminals, devices, and anonymous kernel objects."""

from tests.functional.catalogue.case import Case

CASES: tuple[Case, ...] = ()

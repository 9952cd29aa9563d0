# SPDX-License-Identifier: Apache-2.0
"""The catalogue of states a process can be in: each has a live workload, tried with every engine."""

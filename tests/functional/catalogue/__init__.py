# SPDX-License-Identifier: Apache-2.0
"""The catalogue of states a process can be in: each has a workload, tried with every engine."""

# SPDX-License-Identifier: Apache-2.0
"""How hypothesis runs here: the same examples each time, and no clock to fail a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "torpor", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("torpor")

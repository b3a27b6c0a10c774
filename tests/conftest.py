"""Files that tests write are as private as those that Fairlead writes: it refuses a secret that others can read.

Hypothesis tries the same examples at every run, so that a change is judged by what it changed; others are tried with
`--hypothesis-profile=random`. A machine that stands still for a moment fails no example.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    del config
    os.umask(0o077)

"""Files that tests write are as private as those that Fairlead writes: it refuses a secret that others can read."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    del config
    os.umask(0o077)

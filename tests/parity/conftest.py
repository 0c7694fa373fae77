"""Commands for the parity tests; each is ended with its test, the launcher with the session."""

import pytest

from launch import launcher


@pytest.fixture(scope="session")
def starling():
    yield launcher()
    launcher().close()
    launcher.cache_clear()

"""What all tests share: examples that are not timed on busy machines, and the flag that rewrites golden files."""

import pytest
from hypothesis import settings

settings.register_profile("starling", deadline=None)
settings.load_profile("starling")


def pytest_addoption(parser):
    parser.addoption("--rewrite", action="store_true", help="write the golden event traces anew; read the diff")


@pytest.fixture
def rewrite(request):
    return request.config.getoption("--rewrite")

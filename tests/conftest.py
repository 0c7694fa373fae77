"""What all tests share: examples that are not timed on busy machines, and the flag that rewrites golden files."""

import os
import tempfile

import pytest
import structlog
from hypothesis import settings

# What a run remembers of this machine must not follow from what was run on it before.
_CACHE = tempfile.TemporaryDirectory(prefix="starling-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

settings.register_profile("starling", deadline=None)
settings.load_profile("starling")


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """The command line, called in this process, sets up logging to a stream that ends with its test."""
    yield
    structlog.reset_defaults()


def pytest_addoption(parser):
    parser.addoption("--rewrite", action="store_true", help="write the golden event traces anew; read the diff")


@pytest.fixture
def rewrite(request):
    return request.config.getoption("--rewrite")


@pytest.fixture(scope="module")
def one_thread():
    """Tiny products take one thread: on a busy machine a second one is waited for, for longer than it helps."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

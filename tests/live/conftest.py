"""Commands for the tests of real runs; whatever a test started has ended with it."""

import pytest

from launch import launcher


@pytest.fixture(scope="session")
def the_launcher():
    yield launcher()
    launcher().close()
    launcher.cache_clear()


@pytest.fixture
def start(the_launcher):
    """``start(folder, *arguments)`` begins a ``starling`` command; it is killed at the end if it still runs."""
    commands = []

    def begin(folder, *arguments):
        commands.append(the_launcher.start(folder, *arguments))
        return commands[-1]

    yield begin
    for command in commands:
        command.end()

"""A node on a machine with little memory: what it gives back, what peers can make it hold, and how one asks for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import structlog

from node.cli.main import main
from node.codec import Limits
from node.config import ExperimentConfig
from node.daemon import process
from node.daemon.daemon import Daemon
from node.daemon.memory import SMALL_LIMITS
from node.daemon.nodefile import NodeFile, load_settings
from node.daemon.state import open_state
from node.errors import ConfigError
from node.experiment.setup import prepare

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc alone has mallopt"
)
HELD = """
import sys, psutil
from node.daemon import memory
assert getattr(memory, sys.argv[1])()
held = psutil.Process().memory_info
before = held().rss
blocks = [bytearray(b"x") * 100_000 for _ in range(640)]
most = held().rss
del blocks
print(most - before, held().rss - before)
"""


def held_bytes(how: str) -> tuple[int, int]:
    """What a process with such a malloc holds more: while it has 64 MB in use, and once they are free again."""
    ended = subprocess.run([sys.executable, "-c", HELD, how], capture_output=True, text=True, timeout=60, check=True)
    most, after = map(int, ended.stdout.split())
    return most, after


@glibc
def test_freed_memory_goes_back_or_stays():
    most, after = held_bytes("give_back_freed_memory")
    assert most > 60e6
    assert after < 8e6
    most, after = held_bytes("keep_freed_memory")
    assert after > most - 8e6


def test_every_limit_is_smaller_or_the_same():
    usual = Limits()
    assert all(getattr(SMALL_LIMITS, name) <= getattr(usual, name) for name in vars(usual))
    assert SMALL_LIMITS.arriving_bytes == SMALL_LIMITS.message_bytes == 64 << 20
    assert SMALL_LIMITS.refusals == usual.refusals


@pytest.mark.parametrize(("text", "expected"), [("", False), ("low_memory = true\n", True)])
def test_the_file_says_so(tmp_path, text, expected):
    (tmp_path / "node.toml").write_text(text)
    assert load_settings(tmp_path / "node.toml", {}).low_memory is expected
    assert load_settings(tmp_path / "node.toml", {"STARLING_NODE__LOW_MEMORY": "true"}).low_memory
    assert load_settings(tmp_path / "node.toml", {}, {"low_memory": "true"}).low_memory


def test_what_is_neither_yes_nor_no_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="STARLING_NODE__LOW_MEMORY: ") as error:
        load_settings(None, {"STARLING_NODE__LOW_MEMORY": "plenty"})
    assert "\n" not in str(error.value)


@pytest.fixture
def starling():
    """The command line, in a process that can go on afterwards."""
    terminated = signal.getsignal(signal.SIGTERM)
    yield main
    signal.signal(signal.SIGTERM, terminated)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize(("flags", "chosen"), [([], "keep"), (["--low-memory"], "give back")])
def test_the_flag_reaches_the_process_before_it_loads_anything(tmp_path, monkeypatch, starling, flags, chosen):
    (tmp_path / "node.toml").write_text("")
    calls = []

    def loads(config):
        calls.append("load")
        raise ConfigError("far enough")

    monkeypatch.setattr(process, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(process, "give_back_freed_memory", lambda: calls.append("give back"))
    monkeypatch.setattr(process, "prepare", loads)
    with pytest.raises(SystemExit) as ended:
        starling(["node", "--config", str(tmp_path / "node.toml"), *flags])
    assert ended.value.code == 2
    assert calls == [chosen, "load"]


@pytest.mark.parametrize(("low_memory", "limits"), [(False, Limits()), (True, SMALL_LIMITS)])
def test_a_daemon_holds_its_peers_to_the_limits(tmp_path, low_memory, limits):
    config = ExperimentConfig(name="alone", nodes=1, clock="real", protocol={"use": "local"}, topology={"kind": "full"})
    settings = NodeFile(listen="127.0.0.1:0", state=tmp_path / "state", low_memory=low_memory)
    with open_state(settings.state) as state:
        daemon = Daemon(settings, prepare(config), state, lambda: None)
    assert daemon._transport._limits == limits

"""Log lines: JSON on stderr, and what becomes of them, and of the work, where they cannot be written."""

import json
import os
import resource
import subprocess
import sys

import pytest
import structlog

from node.logs import Lines, configure


class Stream:
    """A text stream over a descriptor."""

    def __init__(self, descriptor):
        self._descriptor = descriptor

    def fileno(self):
        return self._descriptor


@pytest.fixture
def pipe():
    """Reads without waiting, and takes 64 KiB."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


@pytest.fixture
def _structlog_as_before():
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def parsed(data):
    return [json.loads(line) for line in data.decode().splitlines()]


def test_lines_come_out_whole(pipe):
    reading, writing = pipe
    lines = Lines(Stream(writing))
    lines.write('{"event": "ä"}\n')
    lines.write('{"event": "\udcff"}\n')  # a lone surrogate, as file names may have
    assert os.read(reading, 1000) == b'{"event": "\xc3\xa4"}\n{"event": "\\udcff"}\n'


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_costs_lines_and_raises_nothing():
    with open("/dev/full", "w") as full:
        lines = Lines(full)
        for _ in range(3):
            lines.write("lost\n")
            lines.flush()


def test_lines_that_were_lost_are_counted_in_the_next(pipe):
    reading, writing = pipe
    lines = Lines(Stream(writing))
    whole, count = json.dumps({"event": "x" * 1000}) + "\n", 0
    while not lines._lost:
        lines.write(whole)
        count += 1
    lines.write(whole)
    first = os.read(reading, 1 << 20)
    lines.write('{"event": "room again"}\n')
    told = parsed(os.read(reading, 1 << 20).removeprefix(b"\n"))
    assert told == [{"event": "log lines lost", "level": "error", "lines": 2}, {"event": "room again"}]
    kept = first.decode().splitlines()
    assert all(json.loads(line) for line in kept[: count - 1])
    lines.write('{"event": "as before"}\n')
    assert parsed(os.read(reading, 1000)) == [{"event": "as before"}]


def test_half_a_line_is_ended_before_the_next(tmp_path):
    """Or two lines would be one, and none of them could be read."""
    script = (
        "import json, os, resource, sys; from node.logs import Lines; lines = Lines(sys.stderr)\n"
        "for number in range(20): lines.write(json.dumps({'event': 'x' * 50, 'number': number}) + '\\n')\n"
        "os.ftruncate(2, 0); os.lseek(2, 0, os.SEEK_SET)\n"
        'lines.write(\'{"event": "room"}\\n\')\n'
    )
    with (tmp_path / "log").open("w") as log:
        ended = subprocess.run(
            [sys.executable, "-c", script],
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
        )
    assert ended.returncode == 0
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert first == ""
    lost, room = map(json.loads, rest)
    assert (lost["event"], room["event"]) == ("log lines lost", "room")
    assert 10 < lost["lines"] < 20


def test_a_reader_that_has_gone_ends_nothing(pipe):
    reading, writing = os.pipe()
    os.close(reading)
    lines = Lines(Stream(writing))
    lines.write("nobody reads this\n")
    assert lines._lost == 1
    os.close(writing)


@pytest.mark.usefixtures("_structlog_as_before")
def test_what_is_logged_is_json_with_time_and_level(capsys):
    configure()
    structlog.get_logger().info("quiet")
    structlog.get_logger(node=3).warning("loud", reason="because")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {"node": 3, "level": "warning", "event": "loud", "reason": "because"}


@pytest.mark.usefixtures("_structlog_as_before")
def test_verbose_logs_what_happens_too(capsys):
    configure(verbose=True)
    structlog.get_logger().debug("every detail")
    structlog.get_logger().info("something")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["something"]


def test_a_process_whose_log_is_full_ends_as_it_would_have():
    script = "import structlog; from node.logs import configure; configure(); structlog.get_logger().error('x')"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", script], stderr=full).returncode == 0

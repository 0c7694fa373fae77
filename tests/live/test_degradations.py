"""What can go wrong with the machine of a node: each is one clear line, or the node goes on with less."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.request import urlopen

import msgspec
import psutil
import pytest
from structlog.testing import capture_logs

from launch import experiment
from networks import WAIT_S, network, until
from node import durable
from node.daemon import timekeeping
from node.daemon.belonging import belong
from node.daemon.remembering import RESERVED, Incarnations
from node.daemon.standing import Phase
from node.daemon.state import open_state
from node.errors import ConfigError
from node.live import metrics
from node.live.checkpoints import Checkpoints
from node.trust.certificate import TOLERANCE_S
from node.trust.token import Bootstrap

HOUR_S = 3600
LONG = {"protocol": {"use": "local", "rounds": 1_000_000}, "nodes": 1, "topology": {"kind": "full"}}
UNLIMITED = resource.RLIM_INFINITY
PATIENCE_S = 60.0


@pytest.fixture
def alone(start, tmp_path):
    """A node without peers that trains for ever, as a process; gives its command."""
    experiment(tmp_path / "node", **LONG)
    (tmp_path / "node" / "node.toml").write_text(
        'experiment = "experiment.toml"\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
    )
    return start(tmp_path / "node", "node", "--config", "node.toml")


def wait_for(what, condition):
    """What a condition gives, once that is true."""
    until_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while time.monotonic() < until_s:
        if found := condition():
            return found
        pause.wait(0.02)
    raise AssertionError(f"waited for {what} in vain")


def logged(command, event):
    """The lines of an event in a command's log, as far as it is written."""
    log = command.folder / "stderr"
    lines = [line for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []
    return [found for line in lines if (found := json.loads(line))["event"] == event]


def figure(admin, name):
    """One figure of ``/metrics``."""
    with urlopen(f"{admin}/metrics", timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), None)


def limit_files(command, size_bytes):
    """From now on no file of the process may become larger: to it, the disk is full."""
    psutil.Process(command.pid).rlimit(resource.RLIMIT_FSIZE, (size_bytes, UNLIMITED))


class TestFullDisk:
    def test_a_node_trains_on_keeps_what_it_has_and_saves_again_when_there_is_room(self, alone):
        admin = wait_for("the start", lambda: logged(alone, "started"))[0]["admin"]
        wait_for("a checkpoint", lambda: figure(admin, "starling_checkpoint_age_seconds") is not None)
        limit_files(alone, 500)
        folder = next((alone.folder / "state" / "checkpoints").iterdir())
        age_s = figure(admin, "starling_checkpoint_age_seconds")
        wait_for("its growing", lambda: figure(admin, "starling_checkpoint_age_seconds") > age_s + 1)
        before = figure(admin, "starling_round")
        wait_for("more rounds", lambda: figure(admin, "starling_round") > before)
        kept, _ = Checkpoints(folder).load()
        assert kept["round"] < before
        with urlopen(f"{admin}/history", timeout=PATIENCE_S) as answer:
            assert [each["event"] for each in json.load(answer)["warnings"]] == ["checkpoint not saved"]
        with urlopen(f"{admin}/healthz", timeout=PATIENCE_S) as answer:
            assert answer.status == 200

        limit_files(alone, UNLIMITED)
        wait_for("newer state", lambda: Checkpoints(folder).load()[0]["round"] > before)
        wait_for("word of it", lambda: logged(alone, "checkpoint saved again"))
        os.kill(alone.pid, signal.SIGTERM)
        assert alone.wait() == 0
        assert alone.leftovers() == []
        assert not list(folder.glob("*.new"))
        assert logged(alone, "log lines lost"), "its log did not fit either"

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    def test_a_log_that_cannot_be_written_ends_nothing(self, tmp_path):
        experiment(tmp_path, **LONG | {"protocol": {"use": "local", "rounds": 3}})
        (tmp_path / "node.toml").write_text(
            'experiment = "experiment.toml"\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
        )
        with open("/dev/full", "w") as full, running(["node", "--config", "node.toml"], tmp_path, full) as process:
            wait_for("its end", lambda: (tmp_path / "state" / "summary.json").exists())
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        assert json.loads((tmp_path / "state" / "summary.json").read_text())["status"] == "finished"

    async def test_a_member_still_objects_to_being_called_gone(self, tmp_path, monkeypatch):
        """It has kept more incarnations than it had used, and its clockwork goes on when these are used up too."""
        async with network(tmp_path, 2, rounds=1) as net:
            one = await net.join("one", net.token())
            await net.phase(Phase.FINISHED)
            monkeypatch.setattr(durable, "replace", full_disk)
            meeting = one.standing.joining
            before = meeting._machine.incarnation
            with capture_logs() as logs:
                for _ in range(RESERVED + 3):
                    meeting._membership.describe(meeting._record)
            events = [line["event"] for line in logs if line["log_level"] == "error"]
            assert meeting._machine.incarnation == before + RESERVED + 3
            assert set(events) == {"incarnation not kept, so the next start may be taken for a twin"}
            assert len(events) <= 4
            founder = net.daemons["founder"].standing.joining
            await until(lambda: founder.sightings()[1]["incarnation"] == before + RESERVED + 3)

    def test_incarnations_of_two_lives_differ(self, tmp_path, monkeypatch):
        with open_state(tmp_path) as state:
            first = Incarnations(state)
            for incarnation in range(1, 4):
                first.use(incarnation)
            again = Incarnations(state)
            assert again.last >= 3
            monkeypatch.setattr(durable, "replace", full_disk)
            with pytest.raises(ConfigError, match="the incarnation cannot be written: No space left on device"):
                again.use(again.last + 1)

    async def test_a_revocation_that_cannot_be_kept_is_told_and_counts_once_there_is_room(self, tmp_path, monkeypatch):
        async with network(tmp_path, 2, rounds=1) as net:
            one = await net.join("one", net.token())
            await net.phase(Phase.FINISHED)
            decrees = one.standing.joining._decrees
            with net.folder.authority() as authority:
                [peer] = authority.holders(0, time.time())
                revocation = authority.revoke(peer, time.time(), "stolen")
            with monkeypatch.context() as full, capture_logs() as logs:
                full.setattr(os, "fsync", full_disk)
                assert not decrees.take([revocation], [])
            assert "No space left" in next(line["reason"] for line in logs if "not kept" in line["event"])
            assert 0 not in one.standing.lost
            assert decrees.take([revocation], [])
            await until(lambda: 0 in one.standing.lost)


def full_disk(*_):
    raise OSError(28, os.strerror(28))


@contextmanager
def running(arguments, folder, stderr, clock_s=0):
    """``starling`` in a process of its own, whose wall clock is ahead."""
    script = (
        f"import time; wall = time.time; time.time = lambda: wall() + {clock_s}; import node.cli.main as m; m.main()"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STARLING_")}
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=folder, stderr=stderr, env=clean)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class TestWrongClock:
    @pytest.mark.parametrize("clock_s", [HOUR_S, -HOUR_S])
    async def test_a_node_an_hour_off_takes_part_and_is_told_so_and_nobody_else_is(
        self, tmp_path, monkeypatch, clock_s
    ):
        monkeypatch.setattr(timekeeping, "TELL_EVERY_S", 0.2)
        with capture_logs() as logs:
            async with network(tmp_path, 3, rounds=3) as net:
                token = net.token()
                await net.join("one", token)
                (tmp_path / "token").write_text(token.to_text())
                arguments = ["node", "--join", "token", "--state", "off", "--admin", "127.0.0.1:0"]
                with (tmp_path / "log").open("w") as log, running(arguments, tmp_path, log, clock_s) as process:

                    def clock():
                        return [line for line in (tmp_path / "log").read_text().splitlines() if '"clock"' in line]

                    await net.phase(Phase.FINISHED)
                    await until(clock)
                    process.terminate()
                    assert await asyncio.to_thread(process.wait, WAIT_S) == 0
                [line] = clock()
                where = "ahead of" if clock_s > 0 else "behind"
                said = re.search(rf"clock is (\d+) s {where} the median of 2 peers", json.loads(line)["detail"])
                assert abs(int(said[1]) - HOUR_S) < 30
                assert sum((await net.refused("founder")).values()) == 0
        assert [line for line in logs if line["event"] == "clock"] == []

    async def test_a_membership_that_does_not_count_yet_says_why(self, tmp_path, monkeypatch):
        async with network(tmp_path, 2, rounds=1) as net:
            await net.join("one", net.token())
            await net.phase(Phase.FINISHED)
            await net.stop("one")
        wall = time.time
        settings = net.settings("one")
        with open_state(settings.state) as state:
            for clock_s, why in (
                (-HOUR_S - TOLERANCE_S - 60, "this machine's clock is behind, or the admitting node's ahead"),
                (10 * 365 * 24 * HOUR_S, "the certificate of node 1 ended"),
            ):
                monkeypatch.setattr(time, "time", lambda clock_s=clock_s: wall() + clock_s)
                with pytest.raises(ConfigError, match=why) as caught:
                    belong(settings, state, None)
                assert "\n" not in str(caught.value)
            monkeypatch.setattr(time, "time", lambda: wall() - HOUR_S)
            assert belong(settings, state, None).certificate.node == 1


class TestAddresses:
    async def test_members_meet_and_are_looked_at_over_ipv6(self, tmp_path):
        addresses = {"listen": "[::1]:0", "admin": "[::1]:0"}
        async with network(tmp_path, 2, founder=addresses, rounds=2) as net:
            one = await net.join("one", net.token(), **addresses)
            await net.phase(Phase.FINISHED)
            assert one.standing.address.startswith("tcp://[::1]:")
            assert one.standing.admin.startswith("http://[::1]:")
            assert (await net.get("one", "peers"))[0]["state"] == "alive"

    async def test_a_peer_whose_name_does_not_resolve_is_named(self, tmp_path):
        with capture_logs() as logs:
            async with network(tmp_path, 2, rounds=1) as net:
                await net.join("one", net.token(), advertise="nowhere.invalid:7600")
                await until(lambda: [line for line in logs if line["event"] == "peer cannot be found"])
                founder = net.daemons["founder"].standing
                assert founder.phase is Phase.WAITING
                assert founder.ill() is None
        [line] = [line for line in logs if line["event"] == "peer cannot be found" and line["node"] == 0]
        assert (line["peer"], line["address"]) == (1, "tcp://nowhere.invalid:7600")
        assert line["detail"].startswith("the name nowhere.invalid does not resolve here (")

    async def test_an_invitation_to_a_name_that_does_not_resolve_is_one_line(self, tmp_path, start):
        async with network(tmp_path, 2, rounds=1) as net:
            token = net.token()
        bootstrap = (Bootstrap("nowhere.invalid:7600", token.bootstrap[0].curve_key),)
        (tmp_path / "token").write_text(msgspec.structs.replace(token, bootstrap=bootstrap).to_text())
        command = start(tmp_path / "joiner", "node", "--join", str(tmp_path / "token"), "--state", "state")
        assert await asyncio.to_thread(command.wait) == 3
        assert command.err.startswith("starling: tcp://nowhere.invalid:7600: the name nowhere.invalid does not resolve")
        assert command.err.count("\n") == 1
        assert command.leftovers() == []

    def test_a_port_that_is_taken_is_one_line(self, start, tmp_path):
        experiment(tmp_path / "node", **LONG)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            (tmp_path / "node" / "node.toml").write_text(
                f'experiment = "experiment.toml"\nlisten = "{address}"\nadmin = "127.0.0.1:0"\n'
            )
            command = start(tmp_path / "node", "node", "--config", "node.toml")
            assert command.wait() == 2
        assert f"listen: {address} cannot be bound" in command.err
        assert command.err.count("\n") == 1


def test_a_key_that_is_open_to_others_stops_the_node_with_one_line(start, tmp_path):
    experiment(tmp_path / "node", **LONG)
    (tmp_path / "node" / "node.toml").write_text('experiment = "experiment.toml"\nlisten = "127.0.0.1:0"\nadmin = ""\n')
    with open_state(tmp_path / "node" / "state") as state:
        key = state.folder / "keys" / "node.key"
    before = key.read_bytes()
    key.chmod(0o644)
    command = start(tmp_path / "node", "node", "--config", "node.toml")
    assert command.wait() == 2
    assert "node.key is open to others" in command.err
    assert command.err.count("\n") == 1
    assert key.read_bytes() == before, "never a silent new identity"
    assert stat.S_IMODE(key.stat().st_mode) == 0o644


async def test_a_loop_that_lags_is_told_on_the_nodes_page(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_PROBE_S", 0.01)
    async with network(tmp_path, 1, rounds=1) as net:
        founder = net.daemons["founder"]
        await net.phase(Phase.FINISHED)
        with capture_logs() as logs:
            threading.Event().wait(1.2)  # what a handler that computes would do
            await until(lambda: [line for line in logs if line["event"] == "event loop lags"])
        [line] = [line for line in logs if line["event"] == "event loop lags"]
        assert line["lag_s"] >= 1.0
        assert "core of its own" in line["detail"]
        assert founder.standing.ill() is None

"""Members that were away for many rounds: they go on where the others are, and what they take over is fetched."""

from __future__ import annotations

import socket

import pytest

from networks import network, until
from node.daemon.nodefile import load_settings
from node.daemon.standing import Phase
from node.errors import ConfigError
from node.live import parcels

BEHIND = 20
ROUNDS = 120


def rounds_of(daemon):
    recorder = daemon.standing.participant.recorder
    return list(dict.fromkeys(row.round for row in recorder.rows()))


def round_of(daemon):
    return daemon.standing.progress()["round"] or 0


async def test_a_member_that_returns_goes_on_where_the_others_are(tmp_path):
    """With 30 s for the neighbours of a round, to wait in two of the missed rounds would take longer than this may."""
    async with network(tmp_path, 3, rounds=ROUNDS, deadline_s=30.0) as net:
        back, left = await away_and_back(net)
        await net.phase(Phase.FINISHED)
        rounds = rounds_of(back)
        assert rounds[0] > left + BEHIND / 2
        assert rounds == list(range(rounds[0], ROUNDS)), "and from then on it keeps up"
        assert back._parcels.counters() == {"chunks_resent": 0, "bulk_sent_bytes": 0, "bulk_received_bytes": 0}


async def test_a_large_model_is_fetched_as_an_object_and_metrics_count_it(tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "LARGE_BYTES", 0)
    async with network(tmp_path, 3, rounds=ROUNDS, deadline_s=30.0) as net:
        back, left = await away_and_back(net)
        await net.phase(Phase.FINISHED)
        assert rounds_of(back)[0] > left + BEHIND / 2
        size_bytes = net.setup.workload.model_spec.size_bytes
        assert back._parcels.counters()["bulk_received_bytes"] == size_bytes
        lines = (await net.get("one", "metrics")).splitlines()
        assert f"starling_bulk_received_bytes_total {float(size_bytes)}" in lines
        assert "starling_chunks_resent_total 0.0" in lines
        assert not list((tmp_path / "one" / "parcels" / "objects").iterdir()), "nothing of it stays"


async def test_two_members_find_each_other_again_after_both_were_killed_whoever_is_there_first(tmp_path):
    """Nothing was kept of who was there, as after a power cut; and the admitting node comes last."""
    async with network(tmp_path, 2, rounds=100_000, deadline_s=1.0) as net:
        await net.join("one", net.token())
        await net.phase(Phase.RUNNING)
        listen = net.daemons["founder"].standing.address.removeprefix("tcp://")
        for name in ("one", "founder"):
            await net.stop(name)
            (tmp_path / name / "members").unlink(missing_ok=True)
        await net.join("one", None)
        await net.phase(Phase.RUNNING, "one")
        assert net.daemons["one"].standing.lost == {0: "has gone"}
        net.found(listen=listen)
        await until(lambda: not any(net.daemons[name].standing.lost for name in ("one", "founder")))


async def away_and_back(net):
    """A network of three in which node 1 goes early and returns when the others are BEHIND rounds further."""
    token = net.token()
    for name in ("one", "two"):
        await net.join(name, token)
    await until(lambda: net.daemons["one"].standing.participant and round_of(net.daemons["one"]) >= 3)
    await net.stop("one")
    left = round_of(net.daemons["one"])
    await until(lambda: round_of(net.daemons["founder"]) >= left + BEHIND)
    return await net.join("one", None), left


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("bulk_port", 70_000, "less than or equal to 65535"),
        ("bulk_advertise_port", -1, "greater than or equal to 0"),
        ("bulk_rate_bps", 5, "greater than or equal to 100000"),
    ],
)
def test_a_bad_key_is_refused_in_one_line(tmp_path, key, value, allowed):
    file = tmp_path / "node.toml"
    file.write_text(f"{key} = {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{key}: .*{allowed}") as raised:
        load_settings(file, {})
    assert "\n" not in str(raised.value)


async def test_a_bulk_port_that_is_taken_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with network(tmp_path, 2) as net:
            daemon = await net.join("one", net.token(), bulk_port=taken.getsockname()[1])
            with pytest.raises(ConfigError, match="cannot be bound"):
                await net.tasks["one"]
            assert daemon.standing.phase is not Phase.RUNNING

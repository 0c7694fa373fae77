"""Members that nobody can dial: they join, train and come back over their own links, and through relays."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from networks import Network, network, until
from node.daemon import meeting
from node.daemon.nodefile import load_settings
from node.daemon.standing import Phase
from node.errors import ConfigError
from node.experiment.virtual import run_virtual
from node.learn.tensors import load_model
from node.live.shaping import Impairment, Shaper
from node.membership.statement import State
from node.membership.vocabulary import PingRequest, Received


async def models_are_the_simulations(net: Network, tmp_path, *names: str) -> None:
    expected = await asyncio.to_thread(run_virtual, net.setup, lambda *_: None)
    for node, name in enumerate(names):
        assert await net.stop(name) == 0
        mine = load_model(tmp_path / name / "model.safetensors", net.setup.model)
        assert np.array_equal(np.asarray(mine), np.asarray(expected.models[node]))


async def kill(net: Network, name: str) -> None:
    """End a member as SIGKILL does: nothing is said to anybody."""
    daemon = net.daemons.pop(name)
    io = daemon._transport._io
    io.links.say_bye = io.entrance.say_bye = lambda *args, **kwargs: None
    joining = daemon.standing.joining
    joining._membership.close()
    joining._machine.statements = tuple
    joining._membership.leave = lambda: None
    task = net.tasks.pop(name)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    net._open[name].close()


def state_of(net: Network, name: str, peer: int) -> State | None:
    machine = net.daemons[name].standing.joining._machine
    return next((seen.state for seen in machine.known() if seen.peer == peer), None)


async def test_one_that_nobody_can_dial_takes_part_like_the_others(tmp_path):
    async with network(tmp_path, 3) as net:
        token = net.token()
        await net.join("one", token)
        await net.join("two", token, outbound=True)
        await net.phase(Phase.FINISHED)
        assert net.daemons["two"].standing.address == "outbound"
        for name in ("founder", "one"):
            peer = (await net.get(name, "peers"))[-1]
            assert (peer["node"], peer["state"], peer["path"], peer["address"]) == (2, "alive", "outbound", "outbound")
            assert 'starling_peers{path="outbound",state="alive"} 1.0' in await net.get(name, "metrics")
        peers = await net.get("two", "peers")
        assert [(peer["node"], peer["path"]) for peer in peers] == [(0, "direct"), (1, "direct")]
        await until(lambda: all(seen["rtt_s"] for seen in net.daemons["two"].standing.joining.sightings().values()))
        await models_are_the_simulations(net, tmp_path, "founder", "one", "two")


async def test_two_that_nobody_can_dial_train_together_through_a_third(tmp_path):
    async with network(tmp_path, 3) as net:
        token = net.token()
        await net.join("one", token, outbound=True)
        await net.join("two", token, outbound=True)
        await net.phase(Phase.FINISHED)
        one, two = await net.get("one", "peers"), await net.get("two", "peers")
        assert (one[1]["node"], one[1]["path"], one[1]["via"]) == (2, "relay", 0)
        assert (two[1]["node"], two[1]["path"], two[1]["via"]) == (1, "relay", 0)
        text = await net.get("founder", "metrics")
        relayed = next(line for line in text.splitlines() if line.startswith("starling_relayed_bytes_total "))
        weights = np.asarray(load_model(tmp_path / "one" / "model.safetensors", net.setup.model))
        assert float(relayed.split()[1]) > 2 * 3 * weights.nbytes  # one model each way in each round
        await models_are_the_simulations(net, tmp_path, "founder", "one", "two")


async def test_one_that_was_killed_comes_back_by_itself(tmp_path):
    async with network(tmp_path, 3, rounds=2) as net:
        token = net.token()
        await net.join("one", token)
        await net.join("two", token, outbound=True)
        await net.phase(Phase.FINISHED)
        await kill(net, "two")
        for name in ("founder", "one"):
            await until(lambda name=name: 2 in net.daemons[name].standing.lost)
        await net.join("two", None, outbound=True)
        await net.phase(Phase.FINISHED, "two")
        for name in ("founder", "one"):
            await until(lambda name=name: 2 not in net.daemons[name].standing.lost)
            await until(lambda name=name: 2 in net.daemons[name]._transport.paths())
        assert not net.daemons["two"].standing.lost


async def test_a_relay_that_dies_is_replaced_and_nobody_is_taken_for_dead(tmp_path):
    async with network(tmp_path, 4, rounds=2, deadline_s=5.0) as net:
        token = net.token()
        await net.join("one", token)
        await net.join("two", token, outbound=True)
        await net.join("three", token, outbound=True)
        await net.phase(Phase.FINISHED)
        via = net.daemons["two"]._transport.paths()[3].via
        names = {0: "founder", 1: "one"}
        await kill(net, names.pop(via))
        [(left, _)] = names.items()
        for name, peer in (("two", 3), ("three", 2)):
            await until(
                lambda name=name, peer=peer: (
                    (path := net.daemons[name]._transport.paths().get(peer)) is not None and path.via == left
                )
            )
        for name, peer in (("two", 3), ("three", 2)):
            await until(lambda name=name: via in net.daemons[name].standing.lost)
            assert peer not in net.daemons[name].standing.lost
            assert state_of(net, name, peer) is State.ALIVE


async def test_who_holds_its_link_probes_it_for_others(tmp_path):
    async with network(tmp_path, 3, rounds=1) as net:
        token = net.token()
        await net.join("one", token)
        await net.join("two", token, outbound=True)
        await net.phase(Phase.FINISHED)
        helper, helped = net.daemons["one"].standing.joining._machine, []
        step = helper.step

        def counting(event, now):
            if isinstance(event, Received) and isinstance(event.message, PingRequest) and event.message.target == 2:
                helped.append(event.sender)
            return step(event, now)

        helper.step = counting
        deaf = Shaper([Impairment(0.0, math.inf, loss=1.0, peers=frozenset({2}))], 1, 0, 0.0)
        net.daemons["founder"]._transport.shape(deaf)
        await until(lambda: len(helped) >= 2)
        assert set(helped) == {0}
        assert state_of(net, "founder", 2) in (State.ALIVE, State.SUSPECT)
        assert 2 not in net.daemons["founder"].standing.lost
        await until(lambda: state_of(net, "founder", 2) is State.ALIVE)


async def test_members_find_each_other_by_multicast_where_nobody_is_where_he_was(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_CALL_S", 0.3)
    async with network(tmp_path, 3, rounds=1, deadline_s=1.0) as net:
        token = net.token()
        for name in ("one", "two"):
            await net.join(name, token)
        await net.phase(Phase.FINISHED)
        for name in ("two", "one", "founder"):
            await net.stop(name)
        net.tasks.clear()
        net.daemons.clear()
        await net.join("one", None, multicast=True)
        await net.join("two", None, multicast=True)
        for name, peer in (("one", 2), ("two", 1)):
            await until(lambda name=name, peer=peer: peer in net.daemons[name]._transport.paths())
            await until(lambda name=name, peer=peer: state_of(net, name, peer) is State.ALIVE)


class TestSettings:
    @pytest.mark.parametrize(
        ("flags", "wrong"),
        [
            ({"outbound": "true", "network": "somewhere"}, "--outbound: .*the founder is where others join"),
            ({"outbound": "true", "advertise": "192.0.2.7:7600"}, "--outbound: .*no address to advertise"),
            ({"outbound": "perhaps"}, "--outbound: "),
            ({"multicast": "perhaps"}, "--multicast: "),
        ],
    )
    def test_what_does_not_go_together_is_said(self, flags, wrong):
        with pytest.raises(ConfigError, match=wrong):
            load_settings(None, {}, flags)

    def test_neither_is_the_default(self):
        settings = load_settings(None, {})
        assert not settings.outbound
        assert not settings.multicast

    def test_by_environment(self):
        settings = load_settings(None, {"STARLING_NODE__OUTBOUND": "true", "STARLING_NODE__MULTICAST": "true"})
        assert settings.outbound
        assert settings.multicast

"""``ctx.privacy``: what a protocol sees of the mechanisms; ops with explicit statics, refusals in one line."""

import numpy as np
import pytest
from structlog.testing import capture_logs

from node import ConfigError, Protocol, ProtocolError, ShownKey, TopologySection, scale
from node.private import weight_at
from node.testing import run_protocol
from node.topology import build
from tensorial import Tensorial, mechanisms

FULL = TopologySection(kind="full")
STAR = TopologySection(kind="star")


class Scripted(Protocol):
    """Runs a coroutine function of the test; the same on every node."""

    def __init__(self, script):
        super().__init__()
        self.script = script

    async def run(self, ctx):
        return await self.script(ctx)


def run(script, nodes=4, topology=FULL, hidden=True, dimension=4):
    options = {"mechanisms": mechanisms(dimension)} if hidden else {}
    workload = Tensorial(nodes, np.arange(nodes * dimension, dtype=float).reshape(nodes, dimension), lr=1.0)
    return run_protocol(Scripted(script), nodes, workload=workload, topology=topology, **options)


def called(ctx):
    """Ops that this world has recorded, with their static arguments, in order."""
    return [(call.op.name.rpartition(":")[2], dict(call.static)) for call in ctx._world.graph.calls]


def test_a_world_without_mechanisms_says_so():
    async def script(ctx):
        with pytest.raises(
            ProtocolError, match=r"no mechanisms of privacy; give run_protocol\(..., mechanisms=\) some"
        ):
            ctx.privacy  # noqa: B018
        return ctx.initial_model()

    run(script, hidden=False)


def test_one_node_has_one_key_in_all_of_its_life():
    shown = {}

    async def script(ctx):
        assert ctx.privacy is ctx.privacy
        assert ctx.privacy.key == ctx.privacy.key
        shown[ctx.me] = ctx.privacy.key

    run(script)
    assert len({key.public for key in shown.values()}) == 4


def test_noise_is_recorded_with_what_an_accountant_needs():
    async def script(ctx):
        before = ctx.initial_model()
        after = await ctx.train(before)
        privacy = ctx.privacy
        assert privacy.noised_update(before, after, 0.0, 0.0) is after
        privacy.noised_update(before, after, 2.0, 0.5)
        privacy.noised_update(before, after, 2.0, 0.0)
        privacy.noised_update(before, after, 0.0, 0.5)
        if ctx.me == 0:
            assert called(ctx)[-3:] == [
                ("noised_update", {"clip": 2.0, "noise_multiplier": 0.25}),
                ("noised_update", {"clip": 2.0, "noise_multiplier": 0.0}),
                ("noised", {"deviation": 0.5}),
            ]

    run(script)


def test_shares_know_their_members():
    async def script(ctx):
        model = ctx.initial_model()
        alone = ctx.privacy.shares(model, (), 0, 1.0)
        assert alone.of(ctx.me) is model
        assert (alone.least_variance, alone.residual_variance({1})) == (0.0, 0.0)
        quiet = ctx.privacy.shares(model, ctx.neighbours(), 0, 0.0)
        assert quiet.of(ctx.neighbours()[0]) is model
        shares = ctx.privacy.shares(model, ctx.neighbours(), 0, 2.0)
        values = await ctx.values([shares.of(member) for member in (ctx.me, *ctx.neighbours())])
        weights = [ctx.weights(ctx.sources())[0]]
        weights += [weight_at(ctx._world.topology, ctx.me, peer, 0) for peer in ctx.neighbours()]
        assert sum(weight * value for weight, value in zip(weights, values, strict=True)).abs().max() < 1e-12
        assert shares.residual_variance(()) == 0.0
        assert shares.residual_variance({ctx.neighbours()[0]}) > 0
        with pytest.raises(ValueError):
            shares.of(99)

    run(script, 5, STAR)


def test_what_a_model_weighs_elsewhere_is_public():
    """Column by column, also where rows and columns differ."""
    for section in (STAR, TopologySection(kind="star", weights="uniform"), TopologySection(kind="one-peer")):
        topology = build(section, 8, 0)
        for round in (0, 1):
            matrix = topology.matrix(round)
            for node in range(8):
                for receiver in topology.neighbours(node, round):
                    assert weight_at(topology, node, receiver, round) == matrix[receiver, node]


def test_shared_noise_without_partners_is_none():
    async def script(ctx):
        model = ctx.initial_model()
        assert ctx.privacy.decorrelated(model, (), 0, 1.0) is model
        assert ctx.privacy.decorrelated(model, (1,), 0, 0.0) is model

    run(script)


def test_a_key_is_trusted_once_it_is_shown():
    shown = {}

    async def script(ctx):
        shown[ctx.me] = ctx.privacy.key
        await ctx.sleep(1.0)
        peer = (ctx.me + 1) % 4
        assert ctx.privacy.trusts(peer, shown[peer])
        with capture_logs() as logs:
            other = (ctx.me + 2) % 4
            assert not ctx.privacy.trusts(peer, shown[ctx.me])
            assert not ctx.privacy.trusts(other, ShownKey(shown[other].public, bytes(64)))
        assert [(line["event"], line["peer"]) for line in logs] == [("key refused", peer), ("key refused", other)]

    run(script)


def test_a_sum_is_made_of_parts_that_mean_the_same():
    shown, parts = {}, {}

    async def script(ctx):
        model = await ctx.train(ctx.initial_model())
        shown[ctx.me] = ctx.privacy.key
        await ctx.sleep(1.0)
        senders = {node: shown[node] for node in (1, 2, 3)}
        if ctx.me:
            with capture_logs() as logs:
                others = {node: key for node, key in senders.items() if node != ctx.me}
                assert ctx.privacy.masked(model, 0, 0, {}) is ctx.privacy.masked(model, 0, 0, others) is None
                assert not logs  # it may have been late
                alone = {ctx.me: senders[ctx.me]}
                for wrong in (alone, {**senders, ctx.me: shown[0]}, {**senders, 0: shown[0]}):
                    assert ctx.privacy.masked(model, 0, 0, wrong) is None
                parts[ctx.me] = ctx.privacy.masked(model, 0, 0, senders)
                assert ctx.privacy.masked(model, 0, 0, senders) is None  # a second time
            assert [line["event"] for line in logs] == ["sum refused"] * 4
        await ctx.sleep(1.0)
        if ctx.me:
            return

        def summed(own, parts, round=0):
            return ctx.privacy.gathered(parts, senders, round).total(own, {})

        lacking = {node: parts[node] for node in (1, 2)}
        assert ctx.privacy.gathered(lacking, senders, 0).alive == ()
        assert await summed(model, lacking) is None
        assert await summed(model, {**lacking, 3: parts[3]._replace(total=b"other")}) is None
        assert await summed(model, {**lacking, 3: parts[3]._replace(value=model)}) is None
        assert await summed(model, parts, round=1) is None
        with capture_logs() as logs:
            assert await summed(ctx.apply(scale, model, by=0.1), parts) is None
        assert [(line["event"], line["round"]) for line in logs] == [("sum dropped", 0)]
        total = await summed(model, parts)
        expected = sum(0.25 * np.arange(4 * node, 4 * node + 4) for node in (1, 2, 3))
        assert np.asarray(await ctx.value(total)) == pytest.approx(expected, abs=2e-6)

    run(script)


def test_what_is_no_chunk_is_left_out():
    async def script(ctx):
        model = await ctx.train(ctx.initial_model())
        chunks = ctx.privacy.chunks(2, 3, "beacon")
        parts = chunks.cut(model, 0)
        assert sorted(part.spec.shape[0] for part in parts) == [2, 3]
        assert (chunks.owner, chunks.virtual) == (None, ())
        with capture_logs() as logs:
            for number, part in ((0, model), (-1, parts[0]), (2, parts[0]), (0, ctx.evaluate(model))):
                assert chunks.merged(model, [(number, part)], 0) is model
        assert [line["count"] for line in logs] == [1] * 4
        assert chunks.merged(model, [], 0) is model
        own = chunks.merged(model, list(enumerate(parts)), 0)
        assert np.allclose(await ctx.value(own), await ctx.value(model))

    run(script, dimension=5)


def test_the_factor_of_gossip_is_refused_where_there_is_none():
    async def script(ctx):
        with pytest.raises(ConfigError, match="W: a spectral gap needs a symmetric matrix"):
            ctx.privacy.gamma(0)

    run(script, 8, TopologySection(kind="one-peer"))


def test_whoever_calls_may_say_who_adds_up_whom_and_how_much_each_counts():
    """On a star, where 2 and 3 are no neighbours of 1; a mean over all senders, parts let go of in between."""
    shown, parts = {}, {}

    async def script(ctx):
        model = await ctx.train(ctx.initial_model())
        shown[ctx.me] = ctx.privacy.key
        await ctx.sleep(1.0)
        senders, weights = {node: shown[node] for node in (0, 2, 3, 4)}, {0: 1.0, 2: 2.0, 3: 4.0, 4: 1.0}
        if ctx.me != 1:
            assert ctx.privacy.masked(model, 1, 7, senders, recoverable=True) is None  # no neighbours
            odd = {**weights, 3: 0.0}
            assert ctx.privacy.masked(model, 1, 7, senders, recoverable=True, weights=odd) is None
            parts[ctx.me] = ctx.privacy.masked(model, 1, 7, senders, recoverable=True, weights=weights)
        await ctx.sleep(1.0)
        asked = {node: parts[node].shares for node in (0, 3, 4)}
        if ctx.me in asked:
            places = {0: 0, 3: 2, 4: 3}
            shares = [asked[node][places[ctx.me]] for node in (0, 3, 4)]
            parts[ctx.me, "opened"] = ctx.privacy.opened(1, parts[ctx.me].total, (0, 3, 4), shares)
        await ctx.sleep(1.0)
        if ctx.me == 1:
            gathered = ctx.privacy.gathering(weights, 7, window=1)
            assert gathered.alive == ()
            assert [gathered.add(node, parts[node]) for node in (4, 0, 3, 0)] == [True, True, True, False]
            assert not gathered.add(2, parts[2]._replace(total=b"other"))
            assert (gathered.alive, gathered.threshold, gathered.round) == ((0, 3, 4), 3, 7)
            assert gathered.shares_for(3) == tuple(asked[node][2] for node in (0, 3, 4))
            total = await gathered.total(model, {node: parts[node, "opened"] for node in (0, 3, 4)})
            targets = np.arange(20, dtype=float).reshape(5, 4)
            expected = (targets[0] + 4 * targets[3] + targets[4]) / 8
            assert np.asarray(await ctx.value(total)) == pytest.approx(expected, abs=4e-6)

    with capture_logs() as logs:
        run(script, 5, STAR)
    assert [line["event"] for line in logs] == ["sum refused"] * 8

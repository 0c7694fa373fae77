"""What ops mean to the network accountant, and whether what it says of simulated runs is what an attacker gets."""

from __future__ import annotations

import copy
import json
import math

import networkx as nx
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from logged import FULL, RING, Averaging, Model, Noise, Pushing, simulate, steps_of
from node import ConfigError, Context, Mod, Protocol, Ref, op
from node.config import TopologySection
from node.privacy import correlated, gaussian, masking
from node.privacy.chunks import cut
from node.privacy.clipping import noised_update
from node.privacy.from_run import RULES, Sum, told
from node.privacy.lineage import Input, Received, Variable
from node.privacy.network import NetworkAccountant, mu_matrix
from node.privacy.noise import seeded
from node.provenance import Made, read
from node.provenance import Received as Arrived
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.pushsum import PushSum

NODES = range(8)


def made(node, value, op, *inputs, **static):
    return Made(node, value, op, inputs, static)


def update(node, value, before=0, clip=1.0, noise=1.0):
    return made(node, value, "node.privacy.clipping:noised_update", before, value, clip=clip, noise_multiplier=noise)


def mix(node, value, **terms):
    inputs = [int(name[1:]) for name in terms]
    return made(node, value, "learn:mix", *inputs, weights=list(terms.values()))


def row(steps, value):
    """What a value consists of, by column."""
    lineage = told(steps).lineage
    (found,) = lineage.matrix([value])
    return {column: weight for column, weight in zip(lineage.columns, found.tolist(), strict=True) if weight}


def averaging(rounds, always=False):
    return lambda: Averaging(Averaging.Config(rounds=rounds, always=always))


# Ops, one by one


def test_a_noised_update_counts_in_units_of_its_clip():
    told_ = told([update(3, 1, clip=2.0, noise=1.5), Arrived(0, 3, (1,))])
    assert told_.is_clipped
    assert NetworkAccountant(told_.lineage, {0}).mu(3) == pytest.approx(1 / 1.5)
    assert row([update(3, 1, clip=2.0, noise=1.5), Arrived(0, 3, (1,))], 1) == {Variable((3,), 1, 0): 3.0}


def test_what_is_clipped_but_not_noised_is_in_the_open():
    told_ = told([update(3, 1, noise=0.0), Arrived(0, 3, (1,))])
    assert told_.is_clipped
    assert NetworkAccountant(told_.lineage, {0}).mu(3) == math.inf


@pytest.mark.parametrize("op", ["learn:train", "learn:adapt", "quadratic:train"])
def test_training_without_noise_is_in_the_open(op):
    told_ = told([made(3, 1, op, 0), Arrived(0, 3, (1,))])
    assert not told_.is_clipped
    assert NetworkAccountant(told_.lineage, {0}).mu(3) == math.inf


def test_noise_without_a_clip_is_no_guarantee():
    told_ = told([update(3, 1, clip=None, noise=0.0), Arrived(0, 3, (1,))])
    assert not told_.is_clipped


def test_noise_on_a_model_hides_what_was_not_clipped_without_a_guarantee():
    steps = [made(3, 1, "learn:train", 0), made(3, 2, "node.privacy.mechanisms:noised", 1, deviation=4.0)]
    told_ = told([*steps, Arrived(0, 3, (2,))])
    assert not told_.is_clipped
    assert NetworkAccountant(told_.lineage, {0}).mu(3) == pytest.approx(1 / 4)


def test_what_nobody_received_is_left_out():
    steps = [made(3, 1, "learn:train", 0), update(3, 2), made(3, 4, "an:odd", 2), Arrived(0, 3, (2,))]
    told_ = told(steps)
    assert told_.is_clipped
    assert list(told_.lineage.made) == [2]
    assert told_.lineage.received == [Received(2, 0)]


def test_a_mix_adds_up_and_the_initial_model_says_nothing():
    steps = [update(1, 1), update(2, 2, noise=2.0), mix(1, 3, v1=0.25, v2=0.5, v0=0.25), Arrived(0, 1, (3, 0))]
    assert row(steps, 3) == {Variable((1,), 1, 0): 0.25, Variable((2,), 2, 0): 1.0}


def part(node, value, of, start, stop, op="node.learn.parts:part"):
    return made(node, value, op, of, start=start, stop=stop)


def with_head(core=2):
    """Values 1 to 4: an update, its core of five elements, its head of two, and ``core`` with this head."""
    return [update(1, 1), part(1, 2, 1, 0, 5), part(1, 3, 1, 5, 7), made(1, 4, "node.learn.parts:join", core, 3)]


@pytest.mark.parametrize("core", [0, 2])
def test_nobody_may_receive_a_model_with_its_head(core):
    with pytest.raises(ConfigError, match=r"op node\.learn\.parts:join of node 1 shares the head of a model"):
        told([*with_head(core), Arrived(0, 1, (4,))])


OF_JOINED = {
    "trained": made(1, 5, "learn:train", 4),
    "noised": update(1, 5, before=4),
    "mixed": mix(1, 5, v1=0.5, v4=0.5),
    "mixed with a longer core": made(1, 5, "learn:mix", 4, 4, weights=(0.5, 0.5)),
    "scaled": made(1, 5, "node.arithmetic:scale", 4, by=0.5),
    "shifted": made(1, 5, "node.arithmetic:shift", 1, 4, 0),
    "under other noise": made(1, 5, "node.privacy.mechanisms:noised", 4, deviation=1.0),
    "joined again": made(1, 5, "node.learn.parts:join", 4, 3),
    "too long a part": part(1, 5, 4, 0, 6),
    "its head": part(1, 5, 4, 5, 7),
    "shares": made(1, 5, "node.privacy.correlated:zip_shares", 4, weights=(0.5, 0.5), deviation=1.0),
}


@pytest.mark.parametrize("step", OF_JOINED.values(), ids=OF_JOINED)
def test_nothing_made_of_a_head_may_be_received(step):
    with pytest.raises(ConfigError, match="shares the head of a model"):
        told([*with_head(), step, Arrived(0, 1, (5,))])


def test_a_masked_head_is_refused_with_its_sum():
    masked = made(1, 5, "node.privacy.masking:masked", 4, weight=1.0, round=0, receiver=0, senders=[1])
    with pytest.raises(ConfigError, match="shares the head of a model"):
        told([*with_head(), masked, Arrived(0, 1, (5,))])


def test_the_core_of_a_model_that_was_trained_with_its_head_is_the_trained_core():
    trained = [update(1, 5, before=4, noise=2.0), part(1, 6, 5, 0, 5)]
    steps = [*with_head(), *trained, Arrived(0, 1, (2, 6))]
    assert row(steps, 6) == {Variable((1,), 1, 0): 1.0, Variable((1,), 5, 0): 2.0}
    assert list(told(steps).lineage.sources) == [Input(1, 0), Input(1, 1)]
    with pytest.raises(ConfigError, match="shares the head of a model"):
        told([*steps, part(1, 7, 5, 0, 7), Arrived(0, 1, (7,))])


def test_a_core_is_as_long_as_the_parts_that_it_was_mixed_from():
    others = [update(2, 11), part(2, 12, 11, 0, 5), mix(1, 13, v12=0.5, v2=0.5)]
    joined = [made(1, 14, "node.learn.parts:join", 13, 3), part(1, 15, 14, 0, 5), part(1, 16, 14, 0, 6)]
    steps = [*with_head(), *others, *joined]
    assert row([*steps, Arrived(0, 1, (15,))], 15) == {Variable((1,), 1, 0): 0.5, Variable((2,), 11, 0): 0.5}
    with pytest.raises(ConfigError, match=r"op node\.learn\.parts:part of node 1 shares the head"):
        told([*steps, Arrived(0, 1, (16,))])


def test_of_a_core_of_unknown_length_no_part_is_told():
    steps = [*with_head(core=1), part(1, 5, 4, 0, 5), Arrived(0, 1, (5,))]
    with pytest.raises(ConfigError, match="shares the head of a model"):
        told(steps)


class WithHeads(Protocol):
    """Sends cores, or, with ``whole``, a public core with a head that was learned."""

    class Config(Protocol.Config):
        whole: bool = False
        head_layers: int = 1

    @classmethod
    def private_layers(cls, config):
        return config.head_layers

    async def run(self, ctx: Context) -> Ref:
        model = ctx.initial_model()
        first, _ = ctx.split(model)
        for round in range(2):
            core, head = ctx.split(await ctx.train(model))
            sent = ctx.join(first, head) if self.config.whole else core
            await ctx.send(ctx.neighbours(round), Model(round=round, model=sent))
            heard = await ctx.collect(Model, frm=ctx.sources(round), round=round)
            mixed = ctx.mix([sent, *(m.model for m in heard.values())], ctx.weights(heard, round))
            model = mixed if self.config.whole else ctx.join(mixed, head)
        return model


def test_a_protocol_that_sends_heads_gets_no_figure_and_one_that_sends_cores_does(tmp_path):
    steps = steps_of(tmp_path / "cores", WithHeads, mods=[Noise()])
    assert told(steps).is_clipped
    with pytest.raises(ConfigError, match=r"op quadratic:join of node \d shares the head of a model"):
        told(steps_of(tmp_path / "whole", lambda: WithHeads(WithHeads.Config(whole=True)), mods=[Noise()]))


def test_contributions_of_a_node_are_numbered():
    steps = [update(1, 1), update(1, 2, before=1), update(2, 3), Arrived(0, 1, (1, 2)), Arrived(0, 2, (3,))]
    assert list(told(steps).lineage.sources) == [Input(1, 0), Input(1, 1), Input(2, 0)]


def test_a_core_counts_as_the_model_and_a_head_is_refused():
    core = [update(1, 1), made(1, 2, "node.learn.parts:part", 1, start=0, stop=5)]
    head = made(1, 3, "node.learn.parts:part", 1, start=5, stop=7)
    joined = made(1, 4, "node.learn.parts:join", 2, 3)
    again = [made(1, 5, "node.learn.parts:part", 4, start=0, stop=5), Arrived(0, 1, (5,))]
    assert row([*core, head, joined, *again], 5) == {Variable((1,), 1, 0): 1.0}
    with pytest.raises(ConfigError, match=r"op node\.learn\.parts:part of node 1 shares the head of a model"):
        told([*core, head, Arrived(0, 1, (3,))])


def test_arithmetic_is_linear():
    steps = [update(1, 1), update(1, 2), made(1, 3, "node.arithmetic:scale", 1, by=0.5)]
    steps += [made(1, 4, "node.arithmetic:shift", 3, 2, 1, by=2.0), Arrived(0, 1, (4,))]
    assert row(steps, 4) == pytest.approx({Variable((1,), 1, 0): -1.5, Variable((1,), 2, 0): 2.0})


def test_noise_of_an_edge_cancels_between_its_ends():
    steps = [update(node, node + 1) for node in range(3)]
    for node in range(3):
        static = {"peers": [peer for peer in range(3) if peer != node], "round": 4, "deviation": 10.0}
        steps.append(made(node, node + 11, "node.privacy.correlated:decorrelate", node + 1, **static))
    steps += [mix(0, 20, v11=1.0, v12=1.0, v13=1.0), Arrived(3, 0, (20,))]
    assert row(steps, 20) == {Variable((node,), node + 1, 0): 1.0 for node in range(3)}
    assert row([*steps, Arrived(3, 1, (12,))], 12) == {
        Variable((1,), 2, 0): 1.0,
        Variable((0, 1), 4, 0): -10.0,
        Variable((1, 2), 4, 0): 10.0,
    }


def test_decor_from_a_log_is_decor_in_closed_form():
    """An eavesdropper of one round, on a ring of 8 (Allouah et al.): a golden value."""
    steps = [update(node, node + 1, noise=1.0) for node in NODES]
    for node in NODES:
        static = {"peers": sorted({(node + 1) % 8, (node - 1) % 8}), "round": 0, "deviation": 1.0}
        steps.append(made(node, node + 11, "node.privacy.correlated:decorrelate", node + 1, **static))
        steps.append(Arrived(99, node, (node + 11,)))
    accountant = NetworkAccountant(told(steps).lineage, {99}, known=())
    assert accountant.mu(0, sensitivity=2.0) ** 2 / 2 == pytest.approx(0.8952380952, abs=1e-9)


@pytest.mark.parametrize("weights", [(0.2, 0.4, 0.4), (0.2, 0.2, 0.2, 0.2, 0.2), (0.7, 0.1, 0.2)])
def test_shares_cancel_when_mixed_and_vary_as_they_should(weights):
    steps = [update(1, 1), made(1, 2, "node.privacy.correlated:zip_shares", 1, weights=weights, deviation=3.0)]
    for place in range(len(weights)):
        steps += [made(1, 10 + place, "node.privacy.correlated:share", 2, place=place), Arrived(0, 1, (10 + place,))]
    steps += [mix(1, 30, **{f"v{10 + place}": weight for place, weight in enumerate(weights)}), Arrived(0, 1, (30,))]
    lineage = told(steps).lineage
    drawn = [at for at, column in enumerate(lineage.columns) if column[1] == 2]
    variances = [(lineage.matrix([10 + place])[0, drawn] ** 2).sum() for place in range(len(weights))]
    assert variances == pytest.approx(9.0 * correlated.cancelling_variance(weights))
    assert lineage.matrix([30])[0, drawn] == pytest.approx(0.0, abs=1e-12)


def masked(senders, missing=(), receiver=0, **options):
    """The log of one masked sum: values of the senders, and what came to the receiver."""
    steps = []
    for sender in senders:
        static = {"weight": 0.25, "round": 2, "receiver": receiver, "senders": list(senders), **options}
        steps += [update(sender, sender, noise=2.0)]
        steps += [made(sender, sender + 10, "node.privacy.masking:masked", sender, **static)]
        steps += [] if sender in missing else [Arrived(receiver, sender, (sender + 10,))]
    return steps


def test_of_a_masked_sum_nothing_but_the_sum_is_known():
    steps = [*masked((1, 2, 3, 4)), made(0, 30, "node.privacy.masking:unmasked", 11, 12, 13, 14)]
    accountant = NetworkAccountant(told(steps).lineage, {0})
    assert accountant.rank == 1
    assert [accountant.leverage(node) for node in (1, 2, 3, 4)] == pytest.approx([1 / 4] * 4)


def test_a_masked_sum_is_known_whether_or_not_it_was_unmasked():
    assert NetworkAccountant(told(masked((1, 2, 3))).lineage, {0}).rank == 1


def test_an_incomplete_masked_sum_says_nothing():
    steps = [*masked((1, 2, 3), missing=(2,)), update(5, 5), Arrived(0, 5, (5,))]
    told_ = told(steps)
    assert [record.value for record in told_.lineage.received] == [5]
    assert (1, 0) in told_.links


@pytest.mark.parametrize("missing", [(), (3,)])
def test_of_a_recoverable_sum_what_was_opened_is_known(missing):
    """A part that comes too late says nothing, even with all others of its sum."""
    arrived = masked((1, 2, 3, 4), missing, recoverable=True)
    assert told(arrived).lineage.received == []
    steps = [*arrived, made(0, 30, "node.privacy.masking:unmasked", 11, 12, 14, added=["00"], removed=["01"])]
    accountant = NetworkAccountant(told(steps).lineage, {0})
    assert accountant.rank == 1
    assert [accountant.leverage(node) for node in (1, 2, 4)] == pytest.approx([1 / 3] * 3)
    assert [record.node for record in told(steps).lineage.received] == [0]
    assert (1, 0) in told(steps).links


def test_who_sends_its_part_twice_is_one_sender():
    """A node that came back, say: the sum is complete with the last sender, and is the same as ever."""
    again = made(1, 21, "node.privacy.masking:masked", 1, weight=0.25, round=2, receiver=0, senders=[1, 2, 3])
    first, *rest = [step for step in masked((1, 2, 3)) if isinstance(step, Arrived)]
    log = [step for step in masked((1, 2, 3)) if not isinstance(step, Arrived)] + [again, first]
    early = told([*log, Arrived(0, 1, (21,)), rest[0]])
    assert early.lineage.received == []
    for order in ([Arrived(0, 1, (21,)), *rest], [*rest, Arrived(0, 1, (21,))]):
        accountant = NetworkAccountant(told([*log, *order]).lineage, {0})
        assert accountant.rank == 1
        assert [accountant.leverage(node) for node in (1, 2, 3)] == pytest.approx([1 / 3] * 3)


def test_two_masked_sums_are_two():
    other = [
        made(node, node + 20, "node.privacy.masking:masked", node, weight=0.5, round=3, receiver=9, senders=[1, 2, 3])
        for node in (1, 2, 3)
    ]
    steps = [*masked((1, 2, 3), missing=(1, 2, 3)), *other]
    steps += [Arrived(0, node, (node + 10,)) for node in (1, 2, 3)] + [
        Arrived(9, node, (node + 20,)) for node in (1, 2, 3)
    ]
    assert sorted(record.node for record in told(steps).lineage.received) == [0, 9]


def test_the_sum_goes_on_into_what_the_receiver_sends():
    steps = [*masked((1, 2, 3)), made(0, 30, "node.privacy.masking:unmasked", 11, 12, 13), Arrived(7, 0, (30,))]
    assert row(steps, 30) == {Variable((node,), node, 0): 0.5 for node in (1, 2, 3)}


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (made(1, 2, "mine:krum", 1), "op mine:krum of node 1 is not known to the network accountant"),
        (made(1, 2, "node.privacy.chunks:cut", 1), "chunks, which is no differential privacy: epsilon is infinite"),
        (made(1, 2, "node.privacy.correlated:share", 1, place=0), "takes a share of what are no shares"),
        (made(1, 2, "node.privacy.masking:unmasked", 1), "adds up what is not masked"),
        (
            made(1, 2, "node.privacy.correlated:zip_shares", 1, weights=[0.5, 0.5], deviation=1.0),
            "makes what is no model, and is used as one",
        ),
    ],
)
def test_what_cannot_be_told_as_a_sum_is_named_with_its_node(step, why):
    steps = [update(1, 1), step, mix(1, 3, v1=0.5, v2=0.5)]
    told(steps)
    with pytest.raises(ConfigError, match=why) as raised:
        told([*steps, Arrived(0, 1, (3,))])
    assert "\n" not in str(raised.value)


def test_a_row_can_be_added():
    rules = {**RULES, "mine:halved": lambda made, known: Sum(((made.inputs[0], 0.5),))}
    steps = [update(1, 1), made(1, 2, "mine:halved", 1), Arrived(0, 1, (2,))]
    assert told(steps, rules).lineage.matrix([2]).tolist() == [[0.5]]


def test_the_table_names_ops_that_exist():
    ops = [noised_update(seeded), correlated.zip_shares(seeded), correlated.share, masking.unmasked, cut]
    assert {op.name for op in ops} <= RULES.keys()


# Golden values, from the logs of simulated runs


def hypercube(tmp_path):
    labels = {node: int("".join(map(str, node)), 2) for node in nx.hypercube_graph(3)}
    path = tmp_path / "graph.txt"
    path.write_text("".join(f"{labels[a]} {labels[b]}\n" for a, b in nx.hypercube_graph(3).edges))
    return TopologySection(kind="file", path=str(path))


@pytest.mark.parametrize(
    ("topology", "rounds", "published", "exact"),
    [
        (lambda _: RING, 2, [1.3333, 0.3333, 0, 0, 0, 0.3333, 1.3333], [1, 1, 0, 0, 0, 1, 1]),
        (hypercube, 2, [1.25, 1.25, 0.5, 1.25, 0.5, 0.5, 0], [1, 1, 1, 1, 1, 1, 0]),
        (lambda _: FULL, 3, [2.75] * 7, [1] * 7),
    ],
    ids=["ring", "hypercube", "complete"],
)
def test_published_sums_and_exact_leverages(tmp_path, topology, rounds, published, exact):
    """Cyffers et al., NeurIPS 2022, against what a run's log tells of node 0."""
    log = told(steps_of(tmp_path, averaging(rounds), topology=topology(tmp_path), mods=[Noise()])).lineage
    views = [NetworkAccountant(log, {attacker}) for attacker in range(1, 8)]
    assert [view.published_mu(0) ** 2 for view in views] == pytest.approx(published, abs=1e-4)
    assert [view.leverage(0) for view in views] == pytest.approx(exact, abs=1e-9)
    assert [view.mu(0) ** 2 for view in views] == pytest.approx(exact, abs=1e-9)


def test_fresh_noise_by_distance(tmp_path):
    log = told(steps_of(tmp_path, averaging(10, always=True), nodes=16, mods=[Noise()])).lineage
    view = NetworkAccountant(log, {0})
    single = [view.mu(node) ** 2 for node in range(1, 6)]
    sums = [np.abs(view.gram(node)).sum() for node in range(1, 6)]
    assert single == pytest.approx([1, 0.11473, 0.02126, 0.00543, 0.00140], abs=1e-5)
    assert sums == pytest.approx([10.48986, 2.06783, 0.54222, 0.11777, 0.01993], abs=1e-5)


# What an attacker really gets

TRIALS = 20_000
VICTIM = 0


def messages(folder, accountant, world_values):
    """The values that reached the attacker, shape (values, coordinates)."""
    lines = (folder / "lineage" / "all.jsonl").read_bytes().splitlines()
    ids = [line[2] for line in map(json.loads, lines) if line[0] == "made"]
    return np.stack([world_values[ids[value - 1]] for value in accountant.values])


class Keep(Mod):
    """Keeps every model that was trained or came, so that it can be looked at after the run."""

    def __init__(self):
        super().__init__()
        self.refs = {}

    def trained(self, ctx, before, after):
        self.refs[before.id], self.refs[after.id] = before, after
        self.own = getattr(self, "own", {})
        self.own.setdefault(ctx.me, []).append((before.id, after.id))
        return after

    def incoming(self, ctx, sender, message):
        self.refs[message.model.id] = message.model
        return message


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Runs in which every coordinate is a trial: the victim pushes it by 1 or by 0 in every training, others by 0.

    Noise has standard deviation 1, and the clip is above every update.
    """

    def run(always, rounds):
        folder = tmp_path_factory.mktemp("attacked")
        secret = np.random.default_rng(11).integers(0, 2, TRIALS)
        targets = np.zeros((len(NODES), TRIALS))
        targets[VICTIM] = secret
        keep, clip = Keep(), float(TRIALS)
        workload = Pushing(len(NODES), targets)
        world = simulate(folder, averaging(rounds, always), workload=workload, mods=[Noise(clip, 1 / clip), keep])
        values = {id: np.asarray(world.solver.value(ref)) for id, ref in keep.refs.items()}
        return folder, secret, clip, keep.own, values

    return {"once": run(False, 2), "always": run(True, 4)}


def statistic(run, attacker):
    """The best linear test's statistic for each trial, from the messages alone; and the mu that it should reach."""
    folder, _, clip, own, values = run
    lineage = told(read(folder / "lineage")).lineage
    accountant = NetworkAccountant(lineage, {attacker})
    observed = messages(folder, accountant, values)
    full = lineage.matrix(accountant.values)
    # What it has added itself it takes away: its own updates, which are nothing but noise here.
    mine = [at for at, column in enumerate(lineage.columns) if column[0] == (attacker,)]
    pushes = [values[after] - values[before] for before, after in own[attacker]]
    for at, push in zip(mine, pushes[: len(mine)], strict=True):
        observed = observed - full[:, [at]] * push
    full[:, mine] = 0.0
    columns = [lineage.sources[input].column for input in accountant.inputs(VICTIM)]
    signal = full[:, columns].sum(axis=1)
    return signal @ np.linalg.pinv(full @ full.T, rcond=1e-12) @ observed, math.sqrt(
        accountant.gram(VICTIM).sum()
    ) / clip


@pytest.mark.parametrize("attacker", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["once", "always"])
def test_an_attacker_who_reads_messages_gets_what_the_accountant_says(attacked, kind, attacker):
    found, mu = statistic(attacked[kind], attacker)
    reached = roc_auc_score(attacked[kind][1], found)
    assert reached == pytest.approx(gaussian.attack_auc(mu), abs=0.01)
    if kind == "once":
        assert mu == pytest.approx(1.0 if attacker < 3 else 0.0, abs=1e-6)


def test_per_message_sums_would_have_promised_too_much(attacked):
    """At distance 2 of a ring of 8 the sum over messages allows an AUC of 0.6585."""
    found, _ = statistic(attacked["once"], 2)
    assert (
        roc_auc_score(attacked["once"][1], found)
        > 0.75
        > gaussian.attack_auc(math.sqrt(1 / 3))
        == pytest.approx(0.6585, abs=1e-3)
    )


# Whole runs


def test_an_unknown_op_on_the_way_is_one_line(tmp_path):
    @op
    def squared(model):
        return model * model

    class Squaring(Protocol):
        async def run(self, ctx: Context) -> Ref:
            model = ctx.apply(squared, await ctx.train(ctx.initial_model()))
            await ctx.send(ctx.neighbours(), Model(round=0, model=model))
            await ctx.collect(Model, frm=ctx.sources(), round=0)
            return model

    with pytest.raises(ConfigError, match=r"op .*squared of node \d is not known to the network accountant"):
        told(steps_of(tmp_path, Squaring, mods=[Noise()]))


@pytest.mark.parametrize(
    "protocol",
    [
        ADPSGD(ADPSGD.Config(rounds=3)),
        DPSGD(DPSGD.Config(rounds=3)),
        Epidemic(Epidemic.Config(rounds=3, degree=2)),
        FedAvg(FedAvg.Config(rounds=3)),
        PushSum(PushSum.Config(rounds=3)),
    ],
    ids=lambda protocol: type(protocol).__name__,
)
def test_noise_on_every_update_protects_under_any_protocol(tmp_path, protocol):
    """No view tells more than that of an eavesdropper who sees each update by itself."""
    run = told(steps_of(tmp_path, lambda: copy.copy(protocol), mods=[Noise(2.0, 1.5)]))
    assert run.is_clipped
    mus = mu_matrix(run.lineage, 1.0, "all")
    learners = len({input.node for input in run.lineage.sources})
    rounds = max(input.round for input in run.lineage.sources) + 1
    assert (learners, rounds) == (7 if isinstance(protocol, FedAvg) else 8, 3)
    assert 1 / 1.5 - 1e-9 <= np.nanmax(mus) <= math.sqrt(rounds) / 1.5 + 1e-9


def test_a_run_without_noise_gives_everything_away(tmp_path):
    run = told(steps_of(tmp_path, averaging(3)))
    assert not run.is_clipped
    assert NetworkAccountant(run.lineage, {1}).mu(0) == math.inf


@pytest.mark.parametrize("is_recoverable", [False, True])
def test_parts_may_be_added_up_before_they_are_opened(is_recoverable):
    arrived = masked((1, 2, 3, 4), recoverable=is_recoverable)
    summed = made(0, 30, "node.privacy.masking:summed", 11, 12, 13)
    opened = made(0, 31, "node.privacy.masking:unmasked", 30, 14)
    assert len(told([*arrived, summed]).lineage.received) == (not is_recoverable)
    accountant = NetworkAccountant(told([*arrived, summed, opened]).lineage, {0})
    assert accountant.rank == 1
    assert [accountant.leverage(node) for node in (1, 2, 3, 4)] == pytest.approx([1 / 4] * 4)


def test_what_is_not_masked_is_no_part_of_a_sum():
    added = made(0, 30, "node.privacy.masking:summed", 11, 1)
    with pytest.raises(ConfigError, match="adds up what is not masked"):
        told([*masked((1, 2, 3)), added, Arrived(5, 0, (30,))])

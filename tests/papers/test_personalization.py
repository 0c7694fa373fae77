"""What papers claim about protocols that leave each node a model of its own: limits, conservation, what travels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

from node import ConfigError, Context, Message, Mod, Observer, Protocol, Ref, codec, scale
from node.config import ChurnSection, DevicesSection, Distribution, FaultSection, NetworkSection, TopologySection
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.solver import BatchedExecutor
from node.testing import Quadratic, check_protocol, run_protocol
from protocols.deprl import DePRL
from protocols.dispfl import DisPFL, Kept, prune_share
from protocols.ditto import Ditto
from protocols.dpsgd import DPSGD
from protocols.fedper import Core, FedPer
from protocols.finetuned import FineTuned
from protocols.local import Local
from protocols.pfedme import PFedMe

DIFFERENT_SPEEDS = {
    "devices": DevicesSection(seconds_per_sample=Distribution(distribution="lognormal", median=0.1, sigma=1)),
    "network": NetworkSection(latency_s=Distribution(distribution="exponential", mean=0.05)),
}
GRAPHS = st.sampled_from(["ring", "torus", "erdos-renyi", "star", "random-regular", "full"])
SMALL = ["nodes=6", "clock=virtual", "protocol.rounds=2", "data.partition=iid", "model.hidden=[16]"]
FULL = TopologySection(kind="full")
HEARERS = (1, 2, 3)
PERSONAL = [FineTuned, FedPer, DePRL, Ditto, PFedMe, DisPFL]


def made(kind, **options):
    return kind(kind.Config(**options))


def digits(*sets):
    """Six nodes that learn digits; what a simulation of them needs."""
    small = ["nodes=6", "data.partition=iid", "topology.kind=ring", "model.hidden=[16]", "training.local_steps=2"]
    return prepare(load("digits-gossip", ["protocol.use=local", *small, *sets], {})).workload


def same(one, other, nodes=()):
    assert one.models.keys() == other.models.keys()
    return all(np.array_equal(one.models[node], other.models[node]) for node in nodes or one.models)


def measured(outcome, *metrics):
    return [row[1:] for row in outcome.recorder.rows() if not metrics or row.metric in metrics]


class Silent(Mod):
    """Nothing leaves node 0."""

    def outgoing(self, ctx, to, message):
        return message if ctx.me else None


class Traffic(Observer):
    """All messages, by sender and receiver; shared by the copies of all nodes."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def sent(self, ctx, to, message: Message):
        self.messages.append((ctx.me, to, message))


# Every one of them


@pytest.mark.parametrize("kind", PERSONAL)
def test_a_personal_protocol_is_deterministic_and_learns(kind):
    """Twice, windowed and batched the same; and closer to its optimum than the model it started from."""
    protocol = made(kind, rounds=4)
    check_protocol(protocol, 6, workload=Quadratic(6, noise=0.01), **DIFFERENT_SPEEDS)
    recorder = run_protocol(protocol, 6, workload=Quadratic(6, [[5.0, 5.0]] * 6, lr=0.3)).recorder
    first = [row.value for row in recorder.rows() if row.metric == "accuracy" and row.round == 0]
    metric = "accuracy" if kind is FineTuned else "own_accuracy"
    last = [row.value for row in recorder.rows() if row.metric == metric and row.round == 3]
    assert len(first) == len(last) == 6
    assert min(last) > max(first)


@pytest.mark.parametrize("kind", PERSONAL)
def test_a_personal_protocol_survives_a_neighbour_that_dies(kind):
    churn = ChurnSection(schedule=(FaultSection(time_s=0.15, node=2, what="crash"),), detect_s=0.1)
    protocol = made(kind, rounds=5, deadline_s=2.0, **({"batches": 1} if kind is PFedMe else {}))
    outcome = run_protocol(protocol, 5, churn=churn, devices=DevicesSection(seconds_per_sample=0.1))
    assert sorted(outcome.models) == [0, 1, 3, 4]
    assert {row.round for row in outcome.recorder.rows()} >= set(range(5))


def broken_off(protocol, workload):
    """Two nodes, in rounds of 0.6 s or a little more; one is away from the middle of its second round on, for 1 s."""
    faults = (FaultSection(time_s=1.0, node=1, what="crash"), FaultSection(time_s=2.0, node=1, what="return"))
    return run_protocol(
        protocol,
        2,
        workload=workload,
        churn=ChurnSection(schedule=faults, detect_s=0.1),
        devices=DevicesSection(seconds_per_sample=0.1 / workload.samples(0, workload.steps(0))),
        network=NetworkSection(latency_s=0.5, up_bps=1e30, down_bps=1e30),
    )


@pytest.mark.parametrize("kind", PERSONAL)
def test_a_node_that_crashes_goes_on_from_its_last_round(kind):
    """It ends with its rounds recorded, each once: had it begun anew, the first one would be there twice.

    D-PSGD, of which fine-tuning is what comes after, catches up: it leaves out what the other has done meanwhile.
    """
    protocol = made(kind, rounds=4, deadline_s=1.0, **({"batches": 1} if kind is PFedMe else {}))
    outcome = broken_off(protocol, Quadratic(2))
    rounds = [row.round for row in outcome.recorder.rows() if (row.node, row.metric) == (1, "accuracy")]
    assert rounds == ([0, 3, 4] if kind is FineTuned else [0, 1, 2, 3])
    assert sorted(outcome.models) == [0, 1]


def test_a_sparse_node_comes_back_with_its_model_and_mask():
    work, masks = digits("nodes=2", "topology.kind=full"), {}

    class Watched(DisPFL):
        async def exchange(self, ctx, round, own):
            masks.setdefault((ctx.me, round), []).append((await ctx.value(own[1])).tolist())
            return await super().exchange(ctx, round, own)

    outcome = broken_off(made(Watched, rounds=4, deadline_s=1.0, density=0.4), work)
    assert sorted(masks) == [(node, round) for node in (0, 1) for round in range(4)]
    first, again = masks[1, 1]
    assert first == again  # sent before the crash, and after it
    assert masks[1, 0] != [first]
    for model in outcome.models.values():
        assert 0.9 * work.sparse.kept(0.4) < int((model != 0).sum()) <= work.sparse.kept(0.4)


def simulated(use, *sets):
    """A run of an experiment on digits, with all that surrounds one."""
    result = run_virtual(prepare(load("digits-gossip", [*SMALL, f"protocol.use={use}", *sets], {})), lambda *_: None)
    assert result.status == "finished", result.error
    result.close()
    return result


@pytest.mark.parametrize("use", ["deprl", "ditto", "dispfl"])
def test_neither_executor_nor_cache_nor_window_changes_a_bit(use, tmp_path):
    cache = f"executor.cache={tmp_path / 'cache'}"
    plain = simulated(use)
    for sets in (["executor.kind=processes", "executor.workers=2"], ["executor.window_tasks=1"], [cache]):
        assert simulated(use, *sets).run_hash == plain.run_hash, sets
    again = simulated(use, cache)
    assert again.run_hash == plain.run_hash
    assert (again.graph["solved"], plain.graph["reused"]) == (0, 0)


@pytest.mark.parametrize("use", ["finetuned", "fedper", "deprl", "ditto", "pfedme", "dispfl"])
@pytest.mark.parametrize("mechanism", ["record", "node"])
def test_private_training_works_around_it(use, mechanism):
    """Each training is charged to the node's budget. DisPFL's masks may not follow gradients that are not noised."""
    sets = [f"privacy.mechanism={mechanism}"]
    if use == "dispfl":
        with pytest.raises(ConfigError, match=r"^protocol.prune: masks regrow by a gradient .* allowed .*: 0$"):
            simulated(use, *sets)
        sets.append("protocol.prune=0")
    spent = simulated(use, *sets).recorder.latest("epsilon")
    assert len(spent) == 6
    assert min(spent.values()) > 0.1


# Fine-tuning


def test_no_steps_of_fine_tuning_are_d_psgd_bit_for_bit():
    one = run_protocol(made(FineTuned, rounds=3, finetune_steps=0), 6, workload=digits())
    other = run_protocol(made(DPSGD, rounds=3), 6, workload=digits())
    assert same(one, other)
    assert one.event_hash == other.event_hash
    assert measured(one) == measured(other)


def test_fine_tuning_starts_from_d_psgd_and_is_measured_before_and_after():
    workload = Quadratic(4, lr=0.5)
    tuned = run_protocol(made(FineTuned, rounds=3, finetune_steps=2, lr_factor=0.5), 4, workload=workload)
    common = run_protocol(made(DPSGD, rounds=3), 4, workload=workload)
    for node, target in enumerate(workload.targets):
        assert tuned.models[node] == pytest.approx(target + (common.models[node] - target) * 0.75**2)
    assert tuned.messages == common.messages
    rounds = {row.round for row in tuned.recorder.rows() if row.metric == "accuracy"}
    assert rounds == {0, 1, 2, 3}


def test_a_node_that_dies_while_it_tunes_tunes_again_and_to_the_same_model():
    whole = run_protocol(made(FineTuned, rounds=2), 2, workload=Quadratic(2, noise=0.1), devices=_SLOW)
    faults = (FaultSection(time_s=10.0, node=0, what="crash"), FaultSection(time_s=11.0, node=0, what="return"))
    churn = ChurnSection(schedule=faults)
    broken = run_protocol(made(FineTuned, rounds=2), 2, workload=Quadratic(2, noise=0.1), devices=_SLOW, churn=churn)
    assert broken.time_s > whole.time_s
    assert same(whole, broken)


_SLOW = DevicesSection(seconds_per_sample=1.0)


# FedPer and DePRL


@pytest.mark.parametrize("kind", [FedPer, DePRL])
@pytest.mark.parametrize("head", [1, 2])
def test_heads_are_untouched_by_messages(kind, head):
    """Each node's own layers end as if it had never heard of anyone; what is shared is one for all."""
    workload = Quadratic(5, lr=0.4)
    outcome = run_protocol(made(kind, rounds=3, head_layers=head), 5, workload=workload, topology=FULL)
    alone = run_protocol(made(Local, rounds=3), 5, workload=workload)
    models = np.stack([outcome.models[node] for node in range(5)])
    for node in range(5):
        assert models[node, -head:] == pytest.approx(alone.models[node][-head:], abs=1e-12)
    assert np.ptp(models[:, :-head], axis=0).max() < 1e-12
    assert np.ptp(models[:, -head:], axis=0).min() > 0.1


@settings(max_examples=10)
@given(GRAPHS, st.sampled_from([6, 8]), st.integers(0, 2**32))
def test_averaging_cores_preserves_their_sum(kind, nodes, seed):
    sums = mixed_sums(FedPer, "core", kind, nodes, seed)
    assert len(sums) == 3
    for before, after in sums.values():
        assert after == pytest.approx(before, abs=1e-9)


def mixed_sums(kind, field, graph, nodes, seed):
    """Of each round: the sum over the nodes of what was sent, and of what came of it."""
    seen = {}

    class Watched(kind):
        async def mixed(self, ctx, own):
            mixed = await super().mixed(ctx, own)
            values = await ctx.values([getattr(own, field), mixed])
            sums = seen.setdefault(own.round, np.zeros((2, len(values[0]))))
            sums += np.stack(values)
            return mixed

    protocol = Watched(Watched.Config(rounds=3))
    run_protocol(protocol, nodes, workload=Quadratic(nodes, lr=0.5), topology=TopologySection(kind=graph), seed=seed)
    return seen


@settings(max_examples=10)
@given(st.sampled_from([Ditto, PFedMe]), GRAPHS, st.sampled_from([6, 8]), st.integers(0, 2**32))
def test_averaging_the_global_track_preserves_its_sum(protocol, kind, nodes, seed):
    for before, after in mixed_sums(protocol, "model", kind, nodes, seed).values():
        assert after == pytest.approx(before, abs=1e-9)


def test_deprl_trains_the_head_first_and_then_the_core():
    """So many steps each; the core is trained under the head that has just been."""
    workload = Quadratic(2, [[4.0, 8.0]] * 2, lr=0.5)
    outcome = run_protocol(made(DePRL, rounds=1, head_steps=3, core_steps=1), 2, workload=workload)
    assert outcome.models[0].tolist() == [4.0 * 0.5, 8.0 * (1 - 0.5**3)]
    order = []

    class Told(DePRL):
        async def learn(self, ctx, model):
            learned = await super().learn(ctx, model)
            order.append((await ctx.value(model), await ctx.value(learned)))
            return learned

    workload = digits("training.local_steps=4", "training.momentum=0.9", "training.weight_decay=0.01")
    run_protocol(made(Told, rounds=1, head_steps=3), 6, workload=workload)
    cut = workload.cut(1)
    for before, after in order:
        assert not torch.equal(before[:cut], after[:cut])
        assert not torch.equal(before[cut:], after[cut:])


def test_what_is_no_core_is_left_out():
    """A head or a whole model is a shape that a message may have; it changes nothing but its sender's weight."""

    class Confused(Mod):
        def outgoing(self, ctx, to, message):
            return message if ctx.me else Core(round=message.round, core=ctx.initial_model())

    workload = Quadratic(4, lr=0.5)
    confused = run_protocol(made(FedPer, rounds=2), 4, workload=workload, mods=[Confused()], topology=FULL)
    silent = run_protocol(made(FedPer, rounds=2, deadline_s=5.0), 4, workload=workload, mods=[Silent()], topology=FULL)
    assert same(confused, silent, HEARERS)


# What travels


def encoded_bytes(message):
    return codec.encode(message, lambda ref: memoryview(bytes(ref.spec.size_bytes))).size_bytes


def sent_by(protocol, workload, nodes=6):
    traffic = Traffic()
    outcome = run_protocol(protocol, nodes, workload=workload, mods=[traffic])
    assert outcome.bytes_sent == sum(codec.size_bytes(message) for *_, message in traffic.messages)
    for *_, message in traffic.messages:
        assert codec.size_bytes(message) == encoded_bytes(message)
    return [message for *_, message in traffic.messages]


_HEADER_BYTES = 100


@pytest.mark.parametrize("kind", [FedPer, DePRL])
def test_only_the_core_travels(kind):
    workload = digits()
    messages = sent_by(made(kind, rounds=2), workload)
    assert {message.core.spec.shape for message in messages} == {(workload.cut(1),)}
    assert 0 < codec.size_bytes(messages[0]) - 4 * workload.cut(1) < _HEADER_BYTES
    assert workload.cut(1) < workload.model_spec.shape[0]


def test_only_what_is_kept_travels_and_which():
    workload = digits()
    size = workload.model_spec.shape[0]
    for density in (0.2, 0.5, 1.0):
        messages = sent_by(made(DisPFL, rounds=2, density=density), workload)
        payload = 4 * workload.sparse.kept(density) + -(-size // 8)
        assert {4 * m.values.spec.shape[0] + m.bits.spec.shape[0] for m in messages} == {payload}
        assert 0 < codec.size_bytes(messages[0]) - payload < _HEADER_BYTES
    assert {message.values.spec.shape[0] for message in messages} == {size}


@pytest.mark.parametrize("kind", [FineTuned, Ditto, PFedMe])
def test_only_the_global_track_travels(kind):
    """As many bytes as D-PSGD's, but for the names of the messages; and nothing that the personal track depends on."""
    workload = digits()
    few = {"batches": 2} if kind is PFedMe else {}
    messages = sent_by(made(kind, rounds=2, **few), workload)
    plain = sent_by(made(DPSGD, rounds=2), workload)
    assert len(messages) == len(plain)
    assert {message.model.spec for message in messages} == {workload.model_spec}
    assert abs(codec.size_bytes(messages[0]) - codec.size_bytes(plain[0])) < 5


# Ditto


class Alone(Ditto):
    """Its personal track by itself, at the same places in the node's order of ops."""

    async def run(self, ctx: Context):
        v = ctx.initial_model()
        for _ in range(self.config.rounds):
            await ctx.train(ctx.initial_model())
            ctx.mix([v])
            v = await ctx.train(v)
            ctx.evaluate(v)
            ctx.evaluate(v, on="own")
        return v


def test_ditto_without_pull_is_local_training():
    ditto = run_protocol(made(Ditto, rounds=3, pull=0.0), 6, workload=digits())
    alone = run_protocol(made(Alone, rounds=3), 6, workload=digits())
    assert same(ditto, alone)
    pulled = run_protocol(made(Ditto, rounds=3, pull=0.5), 6, workload=digits())
    assert not same(pulled, alone)
    workload = Quadratic(5, lr=0.3)
    local = run_protocol(made(Local, rounds=4), 5, workload=workload)
    assert same(run_protocol(made(Ditto, rounds=4, pull=0.0), 5, workload=workload), local)


@pytest.mark.parametrize("pull", [0.1, 0.5, 2.0])
def test_ditto_ends_between_its_own_optimum_and_the_common_one(pull):
    """The minimiser of |v - target|^2 / 2 + pull |v - w|^2 / 2."""
    workload = Quadratic(4, [[0.0], [4.0], [8.0], [12.0]], lr=0.2)
    topology = FULL
    outcome = run_protocol(made(Ditto, rounds=120, pull=pull), 4, workload=workload, topology=topology)
    w = workload.optimum
    for node, target in enumerate(workload.targets):
        assert outcome.models[node] == pytest.approx((target + pull * w) / (1 + pull), abs=1e-6)


def test_both_trainings_of_a_round_of_ditto_are_at_the_rounds_rate():
    """A round is one step of the schedule, as for protocols that train once."""

    class Halving(Quadratic):
        def lr(self, call):
            return 0.5 ** (call + 1)

    outcome = run_protocol(made(Ditto, rounds=3, pull=0.0), 4, workload=Halving(4, [[8.0, -2.0]] * 4), topology=FULL)
    left = (1 - 1 / 2) * (1 - 1 / 4) * (1 - 1 / 8)
    for model in outcome.models.values():
        assert model == pytest.approx(np.array([8.0, -2.0]) * (1 - left))


def test_the_global_track_of_ditto_is_d_psgd():
    class Global(Ditto):
        async def mixed(self, ctx, own):
            self.w = await super().mixed(ctx, own)
            return self.w

        async def run(self, ctx):
            await super().run(ctx)
            return self.w

    workload = Quadratic(6, lr=0.3)
    common = run_protocol(made(DPSGD, rounds=4), 6, workload=workload)
    for pull in (0.0, 2.0):
        assert same(run_protocol(made(Global, rounds=4, pull=pull), 6, workload=workload), common)


# pFedMe


def test_pfedme_is_the_rule_of_the_paper():
    """Two nodes of one kind, so that averaging changes nothing, against the two loops written out."""
    target, lr = np.array([4.0, -2.0]), 0.03
    options = {"rounds": 3, "batches": 4, "inner_steps": 5, "inner_lr": lr, "pull": 15.0, "lr": 0.02}
    outcome = run_protocol(made(PFedMe, **options), 2, workload=Quadratic(2, [target] * 2, lr=0.9))
    w = np.zeros(2)
    for _ in range(3):
        theta = w
        for _ in range(4):
            for _ in range(5):
                theta = theta - lr * ((theta - target) + 15.0 * (theta - w))
            w = w - 0.02 * 15.0 * (w - theta)
    assert outcome.models[0] == pytest.approx(theta, abs=1e-12)


@pytest.mark.parametrize(("key", "most"), [("lr", "0.133333"), ("inner_lr", "0.133333")])
def test_steps_that_jump_too_far_are_refused(key, most):
    with pytest.raises(ConfigError) as refused:
        PFedMe.check(PFedMe.Config(**{key: 0.2}), 4)
    assert str(refused.value) == f"protocol.{key}: 0.2 x pull 15 diverges; allowed: less than {most}"
    PFedMe.check(PFedMe.Config(**{key: 0.1}), 4)


# DisPFL


def test_the_golden_prune_shares():
    shares = [prune_share(0.5, round, 100) for round in (0, 25, 50, 75, 100)]
    assert shares == pytest.approx([0.5, 0.426777, 0.25, 0.073223, 0.0], abs=1e-6)


class Whole(Message, name="test.personalization/whole/1", key=("round",)):
    round: int
    model: Ref


class Plain(Protocol):
    """Average with equal weights, then train."""

    class Config(Protocol.Config):
        rounds: int = 3

    async def run(self, ctx: Context):
        model = ctx.initial_model()
        for round in range(self.config.rounds):
            await ctx.send(ctx.neighbours(round), Whole(round=round, model=model))
            heard = await ctx.collect(Whole, frm=ctx.sources(round), round=round)
            model = await ctx.train(ctx.mix([model, *(m.model for m in heard.values())]))
        return model


@pytest.mark.parametrize("graph", ["ring", "star", "erdos-renyi"])
def test_dispfl_of_density_1_without_pruning_is_plain_averaging(graph):
    workload, topology = Quadratic(6, lr=0.4), TopologySection(kind=graph)
    dense = run_protocol(made(DisPFL, rounds=4, density=1.0, prune=0.0), 6, workload=workload, topology=topology)
    plain = run_protocol(made(Plain, rounds=4), 6, workload=workload, topology=topology)
    for node in range(6):
        assert dense.models[node] == pytest.approx(plain.models[node], abs=1e-12)


@pytest.mark.parametrize("prune", [0.0, 0.5])
def test_every_layer_keeps_its_number_of_weights_and_nothing_else_is_trained(prune):
    """'A mask that is computed but never applied' would show here: outside its mask every model is exactly 0."""
    workload, seen = digits("training.momentum=0.9"), {}

    class Watched(DisPFL):
        async def exchange(self, ctx, round, own):
            seen.setdefault(ctx.me, []).append([await ctx.value(bits) for bits in (own[1], own[0])])
            return await super().exchange(ctx, round, own)

    outcome = run_protocol(made(Watched, rounds=5, density=0.4, prune=prune), 6, workload=workload)
    size = workload.model_spec.shape[0]
    kept = [
        [np.unpackbits(bits.numpy(), count=size, bitorder="little") for bits, _ in rounds] for rounds in seen.values()
    ]
    counts = {tuple(int(mask[part].sum()) for _, part, _ in workload._model.parts) for own in kept for mask in own}
    assert len(counts) == 1
    assert sum(*counts) == workload.sparse.kept(0.4)
    assert len({mask.tobytes() for own in kept for mask in own}) == (6 if prune == 0 else 30)
    for node, own in enumerate(kept):
        assert not np.asarray(outcome.models[node])[own[-1] == 0].any()
        moved = np.count_nonzero(np.asarray(outcome.models[node]))
        assert 0.9 * workload.sparse.kept(0.4) < moved <= workload.sparse.kept(0.4)


def test_weights_that_have_just_grown_are_sent_as_they_are():
    """Regrown weights start from 0, and the mean over those that keep them counts them."""
    workload, pairs = digits(), []

    class Watched(DisPFL):
        async def exchange(self, ctx, round, own):
            pairs.append(await ctx.values(own))
            return await super().exchange(ctx, round, own)

    run_protocol(made(Watched, rounds=2, density=0.4), 6, workload=workload)
    first, later = pairs[:6], pairs[6:]
    assert all(int((values == 0).sum()) == 0 for values, _ in first if len(values))
    assert all(0 < int((values == 0).sum()) < 0.5 * len(values) for values, _ in later)


class Garbled(Mod):
    """Node 0 sends what is no sparse model of this density."""

    def outgoing(self, ctx, to, message):
        if ctx.me:
            return message
        kept = {"values": message.values, "bits": message.bits}
        field = ("values", "bits")[message.round % 2]
        return Kept(round=message.round, **(kept | {field: ctx.initial_model()}))


class Lying(Mod):
    """Node 0 sends a bitmask of the right size that keeps nothing."""

    def outgoing(self, ctx, to, message):
        if ctx.me:
            return message
        return Kept(round=message.round, values=message.values, bits=ctx.apply(scale, message.bits, by=0))


def test_masks_and_values_of_a_wrong_size_are_left_out():
    workload = Quadratic(4, lr=0.5)
    silent = run_protocol(made(DisPFL, rounds=3, deadline_s=5.0), 4, workload=workload, mods=[Silent()], topology=FULL)
    for mod in (Garbled(), Lying()):
        assert same(
            run_protocol(made(DisPFL, rounds=3), 4, workload=workload, mods=[mod], topology=FULL), silent, HEARERS
        )


# What it is good for: handwritten digits, a quarter of the nodes with theirs upside down


def turned():
    """Digits of 32 nodes, 32 samples each; those of the last 8 are upside down."""
    sets = ["nodes=32", "data.groups=[24,8]", "data.test_fraction=0.43", "model.hidden=[64]", "training.lr=0.1"]
    return digits(*sets, "training.batch_size=8", "training.local_steps=10")


def learned(protocol, workload):
    topology = TopologySection(kind="random-regular", degree=4, weights="uniform")
    return run_protocol(protocol, 32, workload=workload, topology=topology, executor=BatchedExecutor(), every=100)


def leaks(protocol):
    """Accuracy on the nodes' own kind, and the AUC of telling a final model's training samples by their loss."""
    workload = turned()
    found = [_of_node(workload, node, model) for node, model in learned(protocol, workload).models.items()]
    return np.mean(found, axis=0), np.mean(found[24:], axis=0)


def _of_node(workload, node, flat):
    federation = workload._federation
    members, own = federation.train.rows(federation.shards.of(node)), federation.own_test(node)
    logits = workload._model.logits(flat, own.features)
    outside = cross_entropy(logits, own.labels, reduction="none")
    inside = cross_entropy(workload._model.logits(flat, members.features), members.labels, reduction="none")
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    accuracy = float((logits.argmax(1) == own.labels).float().mean())
    return accuracy, roc_auc_score(labels, -torch.cat([inside, outside]).numpy())


def test_the_more_of_a_model_is_one_s_own_the_more_it_tells_of_its_samples():
    """Local > FedPer > fine-tuned > Ditto > D-PSGD; all but local and FedPer do better than alone, and what is tuned
    does better for the few than what is common."""
    rounds = {"rounds": 20}
    arms = {
        "local": made(Local, **rounds),
        "fedper": made(FedPer, **rounds),
        "tuned": made(FineTuned, **rounds, lr_factor=1.0),
        "ditto": made(Ditto, **rounds),
        "common": made(DPSGD, **rounds),
    }
    found = {name: leaks(protocol) for name, protocol in arms.items()}
    auc = {name: mean[1] for name, (mean, _) in found.items()}
    assert list(auc) == sorted(auc, key=auc.__getitem__, reverse=True), auc
    assert all(mean[0] > found["local"][0][0] + 0.02 for name, (mean, _) in found.items() if name != "local")
    few = {name: accuracy for name, (_, (accuracy, _)) in found.items()}
    assert few["tuned"] > few["common"], few


def test_private_heads_protect_what_is_sent_and_concentrate_the_leakage_in_what_is_kept():
    """The neighbour completes the core that it was sent with the head of its own."""
    workload, cores, rounds = turned(), {}, 30

    class Watched(FedPer):
        async def mixed(self, ctx, own):
            if own.round == rounds - 1:
                cores[ctx.me] = await ctx.value(own.core)
            return await super().mixed(ctx, own)

    models = learned(made(Watched, rounds=rounds), workload).models
    cut = workload.cut(1)
    seen = [torch.cat([cores[node], models[(node + 1) % 24][cut:]]) for node in range(24)]
    sent = np.mean([_of_node(workload, node, model)[1] for node, model in enumerate(seen)])
    kept = np.mean([_of_node(workload, node, models[node])[1] for node in range(24)])
    assert sent < 0.55, (sent, kept)
    assert kept > 0.70, (sent, kept)

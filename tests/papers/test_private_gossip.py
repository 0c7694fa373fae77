"""What papers claim of gossip that hides models: means that stay, sums that are exact, noise where it should be."""

import math
from collections import Counter, defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from node import ConfigError, Mod, Observer, op
from node.config import ChurnSection, DevicesSection, Distribution, FaultSection, NetworkSection, TopologySection
from node.errors import ComputeError
from node.testing import check_protocol, run_protocol
from protocols.decor import DECOR
from protocols.dpsgd import DPSGD
from protocols.greeting import Hello
from protocols.local import Local
from protocols.muffliato import Muffliato
from protocols.secagg import Masked, SecAgg, Senders
from protocols.shatter import Chunk, Handed, Heard, Shatter
from protocols.zipdl import Share, ZipDL
from tensorial import Tensorial, mechanisms

FULL, RING, STAR = (TopologySection(kind=kind) for kind in ("full", "ring", "star"))
DIFFERENT_SPEEDS = {
    "devices": DevicesSection(seconds_per_sample=Distribution(distribution="lognormal", median=0.1, sigma=1)),
    "network": NetworkSection(latency_s=Distribution(distribution="exponential", mean=0.05)),
}
ALL = {
    "muffliato": (Muffliato, {"gossip_rounds": 3}),
    "zipdl": (ZipDL, {}),
    "decor": (DECOR, {}),
    "secagg": (SecAgg, {}),
    "shatter": (Shatter, {"degree": 3, "chunks": 2}),
}


def made(kind, **options):
    return kind(kind.Config(**options))


def run(protocol, nodes=8, targets=None, dimension=4, lr=1.0, **options):
    """A run whose nodes jump to their targets (``lr`` 1) whenever they train."""
    workload = options.pop("workload", None) or Tensorial(nodes, targets, lr=lr)
    return run_protocol(
        protocol, nodes, workload=workload, mechanisms=mechanisms(workload.model_spec.shape[0]), **options
    )


def recorded(outcome, metric):
    """Values of a metric by node, in the order of rounds."""
    found = defaultdict(list)
    for row in outcome.recorder.rows():
        if row.metric == metric:
            found[row.node].append(row.value)
    return dict(sorted(found.items()))


def models(outcome):
    return np.stack([np.asarray(outcome.models[node]) for node in sorted(outcome.models)])


class Traffic(Observer):
    """All messages that are received, with who got them; shared by the copies of all nodes."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def received(self, ctx, sender, message):
        self.heard.append((sender, ctx.me, message))

    def of(self, kind):
        return [(sender, to, message) for sender, to, message in self.heard if isinstance(message, kind)]


# Every one of them


@pytest.mark.parametrize("name", ALL)
def test_a_hiding_protocol_is_deterministic(name):
    """Twice, windowed and batched the same, though nodes are of different speeds."""
    kind, options = ALL[name]
    protocol = made(kind, rounds=3, **options)
    check_protocol(protocol, 6, workload=Tensorial(6), mechanisms=mechanisms(), topology=FULL, **DIFFERENT_SPEEDS)


@pytest.mark.parametrize("name", ALL)
def test_a_hiding_protocol_learns(name):
    """Under little noise it comes as near to the best common model as gossip of a few rounds does."""
    kind, options = ALL[name]
    quiet = {key: 0.001 for key in ("noise", "pairwise") if key in kind.Config.model_fields}
    workload = Tensorial(6, [[5.0, 5.0]] * 6, lr=0.3)
    outcome = run(made(kind, rounds=8, **options, **quiet), 6, workload=workload, topology=FULL)
    for accuracies in recorded(outcome, "accuracy").values():
        assert len(accuracies) == 8
        assert accuracies[-1] > 2 * accuracies[0]


@pytest.mark.parametrize("name", ALL)
def test_a_node_that_dies_does_not_end_the_others(name):
    kind, options = ALL[name]
    churn = ChurnSection(schedule=(FaultSection(time_s=0.25, node=2, what="crash"),), detect_s=0.1)
    protocol = made(kind, rounds=5, deadline_s=2.0, **options)
    outcome = run(protocol, 6, topology=FULL, churn=churn, devices=DevicesSection(seconds_per_sample=0.1))
    assert sorted(outcome.models) == [0, 1, 3, 4, 5]
    assert np.isfinite(models(outcome)).all()
    assert {row.round for row in outcome.recorder.rows()} == set(range(5))


@pytest.mark.parametrize("name", ALL)
def test_a_node_that_crashes_goes_on_from_its_last_round(name):
    kind, options = ALL[name]
    faults = (FaultSection(time_s=0.45, node=1, what="crash"), FaultSection(time_s=1.5, node=1, what="return"))
    outcome = run(
        made(kind, rounds=5, deadline_s=1.0, **options),
        5,
        topology=FULL,
        churn=ChurnSection(schedule=faults, detect_s=0.1),
        devices=DevicesSection(seconds_per_sample=0.2),
    )
    rounds = [row.round for row in outcome.recorder.rows() if (row.node, row.metric) == (1, "accuracy")]
    assert rounds == list(range(5))
    assert sorted(outcome.models) == list(range(5))


# The mean of all models stays


@pytest.mark.parametrize("kind", ["ring", "star", "erdos-renyi", "random-regular"])
@pytest.mark.parametrize(
    "protocol", [made(ZipDL, rounds=1, noise=3.0), made(DECOR, rounds=1, clip=0, noise=0, pairwise=3)]
)
def test_noise_that_cancels_leaves_the_mean_where_it_is(protocol, kind):
    """Zip-DL (algorithm 1): noise cancels within a node; DECOR: between the ends of an edge."""
    topology = TopologySection(kind=kind, degree=3)
    workload = Tensorial(8, lr=1.0)
    noised = models(run(protocol, workload=workload, topology=topology))
    plain = models(run(made(DPSGD, rounds=1), workload=workload, topology=topology))
    assert noised.mean(axis=0) == pytest.approx(workload.optimum, abs=1e-12)
    assert np.abs(noised - plain).max() > 0.3  # there was noise


@pytest.mark.parametrize("accelerated", [True, False])
def test_gossip_keeps_the_mean(accelerated):
    """A recursion that began with zeros would multiply it, on this ring by 1.660."""
    workload = Tensorial(8, lr=1.0)
    for gossip_rounds in (1, 2, 7):
        options = {"gossip_rounds": gossip_rounds, "accelerated": accelerated, "clip": 0, "noise": 0}
        outcome = run(made(Muffliato, rounds=1, **options), workload=workload, topology=RING)
        assert models(outcome).mean(axis=0) == pytest.approx(workload.optimum, abs=1e-12)


@pytest.mark.parametrize(
    ("gossip_rounds", "accelerated", "deviation"),
    [
        (5, True, 0.1417),
        (10, True, 0.0244),
        (20, True, 2.13e-4),
        (5, False, 0.8210),
        (10, False, 0.2750),
        (20, False, 0.0313),
    ],
)
def test_accelerated_gossip_needs_fewer_rounds(gossip_rounds, accelerated, deviation):
    """Muffliato, algorithm 1, on a ring of eight whose nodes begin with 0 to 7."""
    options = {"gossip_rounds": gossip_rounds, "accelerated": accelerated, "clip": 0, "noise": 0}
    outcome = run(made(Muffliato, rounds=1, **options), targets=[[float(node)] for node in range(8)], topology=RING)
    assert np.abs(models(outcome) - 3.5).max() == pytest.approx(deviation, rel=1e-2)


def test_gossip_averages_noise_away():
    """All nodes draw noise once; what is left of it in a mean is smaller by the square root of their number."""
    options = {"gossip_rounds": 12, "clip": 0, "noise": 1.0}
    outcome = run(made(Muffliato, rounds=1, **options), 16, np.zeros((16, 2000)), topology=FULL)
    assert models(outcome).std() == pytest.approx(1 / math.sqrt(16), rel=0.05)


def test_a_long_update_is_cut_before_noise_is_added():
    options = {"gossip_rounds": 1, "accelerated": False, "clip": 2.0, "noise": 0}
    outcome = run(made(Muffliato, rounds=1, **options), 4, [[30.0, 40.0]] * 4, topology=FULL)
    assert models(outcome) == pytest.approx(np.array([[1.2, 1.6]] * 4))


# How noisy single messages are


def test_zip_shares_are_as_noisy_as_the_paper_says():
    """A factor of (d - 1)/d for uniform weights; between 0.80 and 4.25 on a star, where the centre hides worst."""
    ring = run(made(ZipDL, rounds=1, noise=0.5), topology=RING)
    assert recorded(ring, "noise_variance") == {node: [pytest.approx(2 / 3 / 4)] for node in range(8)}
    star = run(made(ZipDL, rounds=1, noise=2.0), 5, topology=STAR)
    leaves = {node: [pytest.approx(4.25 * 4)] for node in range(1, 5)}
    assert recorded(star, "noise_variance") == {0: [pytest.approx(0.8 * 4)], **leaves}


def test_a_zip_share_is_the_model_and_its_noise():
    outcome = run(
        made(ZipDL, rounds=2, noise=0.5), 3, np.zeros((3, 20_000)), topology=FULL, mods=[Keep(Share, "model")]
    )
    seen = [values for _, _, values in Keep.taken[:6]]
    assert len(seen) == 6
    for values in seen:
        assert values.std() == pytest.approx(0.5 * math.sqrt(2 / 3), rel=0.03)
    assert len({values.tobytes() for values in seen}) == 6  # another one for each receiver
    assert models(outcome).std() > 0.1


class Keep(Observer):
    """Reads the values of messages as they are received; those of the last round of a run may not be read any more."""

    taken: list = []  # noqa: RUF012

    def __init__(self, kind, field):
        super().__init__()
        self.kind, self.field = kind, field
        Keep.taken = []

    def received(self, ctx, sender, message):
        if isinstance(message, self.kind):
            ctx.spawn(self.read(ctx, sender, message))

    async def read(self, ctx, sender, message):
        Keep.taken.append((sender, ctx.me, np.asarray(await ctx.value(getattr(message, self.field)))))


def test_without_noise_nothing_is_added():
    workload = Tensorial(6, lr=1.0)
    plain = models(run(made(DPSGD, rounds=2), 6, workload=workload, topology=RING))
    quiet = [
        made(ZipDL, rounds=2, noise=0),
        made(DECOR, rounds=2, clip=0, noise=0, pairwise=0),
        made(Muffliato, rounds=2, gossip_rounds=1, clip=0, noise=0),
    ]
    for protocol in quiet:
        assert np.array_equal(models(run(protocol, 6, workload=workload, topology=RING)), plain)


# Who drops out


def test_what_a_dropout_leaves_of_the_noise_is_told():
    """The last message of a node arrives at nobody: the others' noise for it stays."""

    def residual(kind, crash_s, **options):
        churn = ChurnSection(schedule=(FaultSection(time_s=crash_s, node=2, what="crash"),), detect_s=0.1)
        slow = {"topology": RING, "churn": churn, "devices": DevicesSection(seconds_per_sample=0.1)}
        return recorded(run(made(kind, rounds=4, deadline_s=1.0, **options), **slow), "residual_variance")

    zipped = residual(ZipDL, 0.25, noise=3.0)
    decor = residual(DECOR, 0.355, pairwise=3.0)  # it has said hello; its model is on its way
    for node in (1, 3):
        # Of three shares that weigh a third each, one is away: (4 + 1 + 1) / 81. From then on it is known to be.
        assert zipped[node] == [0.0, 0.0, pytest.approx(9 * 6 / 81), 0.0]
        assert decor[node] == [0.0, 0.0, 9.0, 0.0]
    for node in (0, 4, 5, 6, 7):
        assert set(zipped[node]) == set(decor[node]) == {0.0}


@pytest.mark.parametrize(("dropout", "left"), [("recover", 3), ("drop", 0)])
def test_a_dropped_sender_costs_its_part_or_the_round_and_shows_nothing(dropout, left):
    """What has come of an incomplete sum is uniform noise; whoever is left goes on from the next round on."""
    keep = Keep(Masked, "part")
    churn = ChurnSection(schedule=(FaultSection(time_s=0.375, node=2, what="crash"),), detect_s=0.1)
    outcome = run(
        made(SecAgg, rounds=5, deadline_s=2.0, dropout=dropout),
        5,
        np.full((5, 4096), 0.25),
        topology=FULL,
        churn=churn,
        mods=[keep],
        devices=DevicesSection(seconds_per_sample=0.1),
    )
    senders = recorded(outcome, "senders")
    assert {node: senders[node] for node in (0, 1, 3, 4)} == {node: [4, 4, left, 3, 3] for node in (0, 1, 3, 4)}
    assert models(outcome) == pytest.approx(np.full((4, 4096), 0.25), abs=1e-5)
    per_pair = defaultdict(list)
    for sender, to, part in Keep.taken:
        per_pair[sender, to].append(part.view(np.uint32))
    partial = sum(per_pair[sender, 0][2] for sender in (1, 3, 4))
    for words in (*(parts[0] for parts in per_pair.values()), partial):
        counts = np.bincount(words >> 28, minlength=16)
        assert ((counts - 256) ** 2 / 256).sum() < 60  # chi-square with 15 degrees of freedom: 1e-6


# Secure sums


@pytest.mark.parametrize(("kind", "nodes"), [("full", 5), ("random-regular", 8), ("erdos-renyi", 9)])
def test_a_secure_sum_is_the_plain_one(kind, nodes):
    """Within half a step for each sender, and the rounding of single precision."""
    topology = TopologySection(kind=kind, degree=4, probability=0.9)
    workload = Tensorial(nodes, np.random.default_rng(5).normal(size=(nodes, 50)), lr=1.0)
    secure = models(run(made(SecAgg, rounds=1), nodes, workload=workload, topology=topology))
    plain = models(run(made(DPSGD, rounds=1), nodes, workload=workload, topology=topology))
    assert np.abs(secure - plain).max() <= nodes / 2 / 2**20 + 1e-6
    assert not np.array_equal(secure, plain)


def test_a_slow_sender_is_done_without():
    """Who has not said hello in time is in no sum; its part, had it come late, would be refused with its round."""
    slow = DevicesSection(seconds_per_sample=Distribution(distribution="lognormal", median=0.1, sigma=3.0))
    outcome = run(made(SecAgg, rounds=4, deadline_s=0.5), 8, topology=FULL, devices=slow)
    counts = [count for values in recorded(outcome, "senders").values() for count in values]
    assert {0 < count < 7 for count in counts} == {True, False}
    assert np.isfinite(models(outcome)).all()
    assert np.abs(models(outcome)).max() < 5  # no sum was of other parts than it should


def test_a_sum_that_could_overflow_is_never_sent():
    with pytest.raises(ComputeError, match="secure aggregation: a value of 2500, for a sum of 3 senders"):
        run(made(SecAgg, rounds=1), 4, np.full((4, 3), 10_000.0), topology=FULL)


class Noise(Mod):
    """From round 1 on, node 3 sends words of its own invention in place of its parts."""

    def outgoing(self, ctx, to, message):
        lies = ctx.me == 3 and isinstance(message, Masked) and message.round
        return replace(message, part=ctx.apply(_invented, message.part)) if lies else message


@op(seeded=True)
def _invented(part, *, rng):
    return torch.from_numpy(rng.integers(-(2**31), 2**31, len(part)).astype(np.int32))


def test_a_lie_in_a_sum_costs_its_round_and_ends_no_honest_node():
    """The honest go on as if it had not come; whoever lies has the others' honest sums."""
    with capture_logs() as logs:
        outcome = run(made(SecAgg, rounds=4), 5, np.full((5, 64), 0.25), topology=FULL, mods=[Noise()])
    senders = recorded(outcome, "senders")
    assert senders == {node: [4, 4, 4, 4] if node == 3 else [4, 0, 0, 0] for node in range(5)}
    assert {line["event"] for line in logs} == {"sum dropped"}
    assert models(outcome) == pytest.approx(np.full((5, 64), 0.25), abs=1e-5)


def test_no_mask_is_used_twice():
    """The same model for the same receivers, round after round: what is sent never looks the same."""
    keep = Keep(Masked, "part")
    run(made(SecAgg, rounds=4), 4, np.zeros((4, 16)), topology=FULL, mods=[keep])
    assert len(Keep.taken) >= 3 * 4 * 3
    assert len({part.tobytes() for _, _, part in Keep.taken}) == len(Keep.taken)


def test_with_fewer_than_three_senders_nobody_sends():
    traffic = Traffic()
    outcome = run(made(SecAgg, rounds=2), 8, topology=RING, mods=[traffic])
    assert traffic.of(Masked) == []
    assert {tuple(values) for values in recorded(outcome, "senders").values()} == {(0.0, 0.0)}
    with pytest.raises(ConfigError, match="nodes: 3 are too few for sums of 3 senders; allowed: 4 or more"):
        SecAgg.check(SecAgg.Config(), 3)


# Attackers


class Forger(Mod):
    """Node 3 shows a key that it has not signed."""

    def outgoing(self, ctx, to, message):
        if ctx.me == 3 and isinstance(message, Hello):
            return Hello(round=message.round, public=bytes(range(32)), signature=message.signature)
        return message


@pytest.mark.parametrize("name", ["decor", "secagg"])
def test_a_forged_key_is_refused(name):
    kind, options = ALL[name]
    traffic = Traffic()
    with capture_logs() as logs:
        outcome = run(made(kind, rounds=2, deadline_s=1.0, **options), 6, topology=FULL, mods=[Forger(), traffic])
    assert {(line["event"], line["peer"]) for line in logs if "peer" in line} == {("key refused", 3)}
    assert np.isfinite(models(outcome)).all()
    if kind is SecAgg:
        senders = recorded(outcome, "senders")
        assert {node: senders[node] for node in (0, 1, 2, 4, 5)} == {node: [4, 4] for node in (0, 1, 2, 4, 5)}
        assert not [message for sender, _, message in traffic.of(Masked) if sender == 3]


class Greedy(Mod):
    """Node 3 would have a sum of node 0's model and of its own inventions; or of fewer than three."""

    class Config(Mod.Config):
        how: str

    def outgoing(self, ctx, to, message):
        if ctx.me != 3 or not isinstance(message, Senders):
            return message
        mine = next(key for key in message.keys if key[0] == to)
        others = [key for key in message.keys if key[0] != to]
        keys = {
            "alone": (mine,),
            "pair": (mine, others[0]),
            "inventions": (mine, *((node, bytes(range(32)), bytes(64)) for node, _, _ in others)),
            "strangers": (mine, *others, (77, bytes(32), bytes(64))),
            "without": tuple(others),
        }[self.config.how]
        return Senders(round=message.round, keys=keys)


@pytest.mark.parametrize("how", ["alone", "pair", "inventions", "strangers", "without"])
def test_a_receiver_that_would_single_out_a_model_gets_nothing(how):
    traffic = Traffic()
    greedy = Greedy(Greedy.Config(how=how))
    with capture_logs() as logs:
        outcome = run(made(SecAgg, rounds=1, deadline_s=1.0), 6, topology=FULL, mods=[greedy, traffic])
    refused = {line["receiver"] for line in logs if line["event"] == "sum refused"}
    assert refused == (set() if how == "without" else {3})
    assert not [to for _, to, _ in traffic.of(Masked) if to == 3]
    senders = recorded(outcome, "senders")
    assert senders.pop(3) == [0]
    assert set(map(tuple, senders.values())) == {(5,)}


class Vandal(Mod):
    """Node 3's parts and chunks are of no use: of another sum, of another shape, under a number that there is not."""

    class Config(Mod.Config):
        how: str

    def outgoing(self, ctx, to, message):
        if ctx.me != 3 or not isinstance(message, Masked | Handed):
            return message
        if isinstance(message, Masked):
            total = bytes(16) if self.config.how == "name" else message.total
            part = ctx.initial_model() if self.config.how == "shape" else message.part
            return replace(message, total=total, part=part)
        chunk = 99 if self.config.how == "name" else message.chunk
        values = ctx.initial_model() if self.config.how == "shape" else message.values
        return replace(message, chunk=chunk, values=values)


@pytest.mark.parametrize("how", ["name", "shape"])
def test_garbage_costs_no_more_than_its_sender_s_part(how):
    vandal = Vandal(Vandal.Config(how=how))
    for dropout, left in (("recover", 3), ("drop", 0)):
        summed = run(made(SecAgg, rounds=2, dropout=dropout), 5, topology=FULL, mods=[vandal])
        counts = {node: [4, 4] if node == 3 else [left, left] for node in range(5)}
        assert recorded(summed, "senders") == counts
    with capture_logs() as logs:
        chunked = run(made(Shatter, rounds=2, chunks=2, degree=3), 5, np.ones((5, 5)), mods=[vandal])
    assert np.allclose(models(chunked), 1.0)
    assert {line["event"] for line in logs} == {"chunks refused"}


# Chunks


def test_chunks_cost_as_much_as_whole_models_and_tell_no_names():
    """Every coordinate goes to as many virtual nodes as each has neighbours."""
    traffic = Traffic()
    outcome = run(made(Shatter, rounds=2, chunks=4, degree=4), 12, np.zeros((12, 64)), mods=[traffic])
    told = [
        (to, message.round, source, chunk, values.spec.shape[0])
        for _, to, message in traffic.of(Heard)
        for source, chunk, values in zip(message.sources, message.chunks, message.values, strict=True)
    ]
    assert sum(size for *_, size in told) == 2 * 12 * 4 * 64
    assert outcome.messages == len(told) == 2 * 12 * 4 * 4
    assert {field.name for field in fields(Chunk)} == {"round", "chunk", "values"}
    carried = Counter((source, round, chunk) for _, round, source, chunk, _ in told)
    assert len(carried) == 12 * 2 * 4
    assert set(carried.values()) == {4}


def test_chunked_models_come_together():
    """What keeps models apart is training; chunks bring them together though no node ever sends a whole one."""
    workload = Tensorial(8, np.random.default_rng(3).normal(size=(8, 40)), lr=0.1)
    chunked = run(made(Shatter, rounds=15, chunks=4, degree=4), workload=workload)
    alone = run(made(Local, rounds=15), workload=workload)
    assert chunked.spread() < 0.1 * alone.spread()


def test_whole_models_in_one_chunk_are_averaged_as_they_are():
    """With one chunk and all others as neighbours every node has the mean of all."""
    workload = Tensorial(6, lr=1.0)
    outcome = run(made(Shatter, rounds=1, chunks=1, degree=5), 6, workload=workload)
    assert models(outcome) == pytest.approx(np.tile(workload.optimum, (6, 1)))


@pytest.mark.parametrize(("nodes", "chunks", "degree"), [(4, 2, 8), (3, 3, 3)])
def test_a_graph_of_virtual_nodes_that_cannot_be_is_refused(nodes, chunks, degree):
    with pytest.raises(ConfigError, match=f"protocol.degree: no graph of {nodes * chunks} virtual nodes has {degree}"):
        Shatter.check(Shatter.Config(chunks=chunks, degree=degree), nodes)

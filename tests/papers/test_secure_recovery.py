"""Secure sums of those who are there, whole runs of them: who drops out when, who lies, and what it is good for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from node import Mod
from node.config import ChurnSection, DevicesSection, FaultSection, TopologySection
from node.testing import check_protocol, run_protocol
from protocols.dpsgd import DPSGD
from protocols.secagg import Masked, Opened, SecAgg, Survivors
from tensorial import Tensorial, mechanisms

FULL = TopologySection(kind="full")


def secure(**options):
    return SecAgg(SecAgg.Config(**options))


def run(protocol, nodes=5, targets=None, lr=1.0, **options):
    """A run whose nodes jump to their targets (``lr`` 1) whenever they train."""
    workload = Tensorial(nodes, np.full((nodes, 4), 0.25) if targets is None else targets, lr=lr)
    hidden = mechanisms(workload.model_spec.shape[0])
    return run_protocol(protocol, nodes, workload=workload, mechanisms=hidden, topology=FULL, **options)


def models(outcome):
    return np.stack([np.asarray(outcome.models[node]) for node in sorted(outcome.models)])


def senders(outcome):
    """How many models each sum of a node had, round by round."""
    found = {}
    for row in outcome.recorder.rows():
        if row.metric == "senders":
            found.setdefault(row.node, []).append(row.value)
    return dict(sorted(found.items()))


class Without(Mod):
    """Messages of one kind that some node never sends, in one round, to some others."""

    class Config(Mod.Config):
        kind: str
        node: int = 3
        round: int = 1
        to: tuple[int, ...] = tuple(range(10))

    def outgoing(self, ctx, to, message):
        mine = (type(message).__name__, ctx.me, getattr(message, "round", None))
        dropped = mine == (self.config.kind, self.config.node, self.config.round) and to in self.config.to
        return None if dropped else message


def without(**options):
    return Without(Without.Config(**options))


# Who drops out


def test_a_missing_part_leaves_the_sum_of_the_others():
    """To the last bit: that of a round in which the weight of the missing goes back to the receiver's own model."""
    targets = np.random.default_rng(5).normal(size=(5, 50))
    outcome = run(secure(rounds=2, deadline_s=1.0), targets=targets, mods=[without(kind="Masked", round=0)])
    assert senders(outcome) == {node: [4, 4] if node == 3 else [3, 4] for node in range(5)}
    first = run(secure(rounds=1, deadline_s=1.0), targets=targets, mods=[without(kind="Masked", round=0)])
    mean = targets.mean(axis=0)
    for node, model in enumerate(models(first)):
        expected = mean if node == 3 else mean + (targets[node] - targets[3]) / 5
        assert np.abs(model - expected).max() < 5 / 2 / 2**20 + 1e-6


def test_the_sums_of_a_round_with_nobody_missing_are_the_same_whatever_hides_them():
    targets = np.random.default_rng(5).normal(size=(5, 50))
    one, other = (run(secure(rounds=3, dropout=dropout), targets=targets) for dropout in ("recover", "drop"))
    assert np.array_equal(models(one), models(other))
    assert senders(one) == senders(other) == {node: [4, 4, 4] for node in range(5)}


@pytest.mark.parametrize("dropout", ["recover", "drop"])
def test_nodes_that_end_early_still_open_the_sums_of_others(dropout):
    """The slowest node needs the others' openings when they have ended."""
    devices = DevicesSection.model_validate(
        {"seconds_per_sample": {"distribution": "lognormal", "median": 0.1, "sigma": 2}}
    )
    outcome = run(secure(rounds=2, dropout=dropout), 8, devices=devices)
    assert senders(outcome) == {node: [7, 7] for node in range(8)}


def test_two_missing_of_four_are_too_many():
    mods = [without(kind="Masked", node=node, to=(0,)) for node in (3, 4)]
    outcome = run(secure(rounds=3, deadline_s=1.0), mods=mods)
    assert senders(outcome) == {node: [4, 0, 4] if node == 0 else [4, 4, 4] for node in range(5)}
    assert models(outcome) == pytest.approx(np.full((5, 4), 0.25), abs=1e-5)


def test_a_sender_that_goes_before_the_opening_is_in_the_sum_all_the_same():
    outcome = run(secure(rounds=3, deadline_s=1.0), mods=[without(kind="Opened")])
    assert senders(outcome) == {node: [4, 4, 4] for node in range(5)}


def test_where_too_few_open_the_sum_is_dropped():
    mods = [without(kind="Opened", node=node, to=(0,)) for node in (3, 4)]
    with capture_logs() as logs:
        outcome = run(secure(rounds=3, deadline_s=1.0), mods=mods)
    assert senders(outcome) == {node: [4, 0, 4] if node == 0 else [4, 4, 4] for node in range(5)}
    told = [(line["round"], line["senders"], line["reason"]) for line in logs if line["event"] == "sum dropped"]
    assert told == [(1, 4, "too few have opened it")]


@pytest.mark.parametrize("time_s", [0.33, 0.345, 0.36, 0.375, 0.39, 0.405, 0.42])
def test_whenever_a_sender_crashes_the_others_go_on(time_s):
    """Through a whole round's exchanges of 10 ms each, after a training of 0.1 s: no sum is lost."""
    churn = ChurnSection(schedule=(FaultSection(time_s=time_s, node=2, what="crash"),), detect_s=0.05)
    devices = DevicesSection(seconds_per_sample=0.1)
    outcome = run(secure(rounds=5, deadline_s=2.0), churn=churn, devices=devices)
    counts = senders(outcome)
    assert all(count in (3, 4) for node in (0, 1, 3, 4) for count in counts[node])
    assert counts[0][-1] == 3
    assert models(outcome) == pytest.approx(np.full((4, 4), 0.25), abs=1e-5)


def test_who_comes_back_in_the_middle_of_a_round_spoils_no_sum():
    """It repeats its round with an empty book, and opens nothing of what its earlier life has sent."""
    faults = [FaultSection(time_s=0.375, node=1, what="crash"), FaultSection(time_s=0.4, node=1, what="return")]
    churn = ChurnSection(schedule=tuple(faults), detect_s=0.1)
    outcome = run(secure(rounds=6, deadline_s=0.5), churn=churn, devices=DevicesSection(seconds_per_sample=0.1))
    assert np.abs(models(outcome) - 0.25).max() < 1e-5
    assert sorted(outcome.models) == list(range(5))
    assert all(len(counts) >= 6 for counts in senders(outcome).values())


def test_a_run_with_dropouts_is_deterministic():
    churn = ChurnSection(schedule=(FaultSection(time_s=0.375, node=2, what="crash"),), detect_s=0.1)
    options = {"churn": churn, "devices": DevicesSection(seconds_per_sample=0.1), "topology": FULL}
    check_protocol(secure(rounds=4, deadline_s=1.0), 6, workload=Tensorial(6), mechanisms=mechanisms(), **options)


def test_recovering_is_worth_it():
    """A tenth of all parts is lost: with recovery models come as near as plain gossip does; without, they stay away."""

    class Lossy(Mod):
        def outgoing(self, ctx, to, message):
            if not isinstance(message, Masked):
                return message
            return None if (7 * ctx.me + 3 * to + message.round) % 10 == 0 else message

    targets = np.random.default_rng(2).normal(size=(8, 20))
    spread, found = {}, {}
    for dropout in ("recover", "drop"):
        outcome = run(secure(rounds=12, deadline_s=0.5, dropout=dropout), 8, targets, lr=0.1, mods=[Lossy()])
        spread[dropout] = outcome.spread()
        found[dropout] = Counter(count > 0 for counts in senders(outcome).values() for count in counts)
    plain = run(DPSGD(DPSGD.Config(rounds=12)), 8, targets, lr=0.1).spread()
    assert found["recover"][True] == 8 * 12
    assert found["drop"][True] < 0.6 * 8 * 12
    assert spread["recover"] < 0.5 * spread["drop"]
    assert spread["recover"] < 3 * plain + 0.1


# Who lies


class Liar(Mod):
    """Node 3 asks for more than it should, or tells others other things."""

    class Config(Mod.Config):
        how: str

    def outgoing(self, ctx, to, message):
        if ctx.me != 3 or not isinstance(message, Survivors):
            return message
        if self.config.how == "few":
            return replace(message, alive=message.alive[:2], shares=message.shares[:2])
        if self.config.how == "without you":
            others = [place for place, peer in enumerate(message.alive) if peer != to]
            alive, shares = ([each[place] for place in others] for each in (message.alive, message.shares))
            return replace(message, alive=tuple(alive), shares=tuple(shares))
        if self.config.how == "another sum":
            return replace(message, total=bytes(16))
        if self.config.how == "cut shares":
            return replace(message, shares=tuple(share[:-4] for share in message.shares))
        left_out = 0 if to != 0 else 1  # each is told that another one is missing
        kept = [place for place, peer in enumerate(message.alive) if peer != left_out]
        return replace(
            message,
            alive=tuple(message.alive[place] for place in kept),
            shares=tuple(message.shares[place] for place in kept),
        )


@pytest.mark.parametrize("how", ["few", "without you", "another sum", "cut shares", "others missing"])
def test_a_receiver_that_lies_about_who_is_there_gets_nothing(how):
    """Most of it is refused; what is not gives seeds that do not fit together."""
    with capture_logs() as logs:
        outcome = run(secure(rounds=1, deadline_s=0.5), mods=[Liar(Liar.Config(how=how))])
    refused = [line["receiver"] for line in logs if line["event"] == "opening refused"]
    assert refused == ([] if how == "others missing" else [3] * 4)
    assert senders(outcome) == {node: [0] if node == 3 else [4] for node in range(5)}


class Late(Mod):
    """Node 2's part for node 3 comes when node 3 has given up on it; node 3 then asks for a sum with it."""

    def __init__(self):
        super().__init__()
        self.again = set()

    def outgoing(self, ctx, to, message):
        if message in self.again or getattr(message, "round", 1):
            return message
        if isinstance(message, Masked) and (ctx.me, to) == (2, 3):
            self.tell(ctx, to, 0.51, replace(message))
            return None
        if isinstance(message, Survivors) and ctx.me == 3:
            self.tell(ctx, to, 0.02, replace(message, alive=(0, 1, 2, 4), shares=(*message.shares, message.shares[0])))
        return message

    def tell(self, ctx, to, after_s, message):
        self.again.add(message)
        ctx.spawn(self.later(ctx, to, after_s, message))

    async def later(self, ctx, to, after_s, message):
        await ctx.sleep(after_s)
        await ctx.send(to, message)


def test_the_sum_is_not_opened_again_for_a_part_that_comes_late():
    with capture_logs() as logs:
        outcome = run(secure(rounds=3, deadline_s=0.5), mods=[Late()], devices=DevicesSection(seconds_per_sample=0.1))
    assert senders(outcome)[3] == [3, 4, 4]
    told = [line["reason"] for line in logs if line["event"] == "opening refused"]
    assert len(told) == 3
    assert all("no sum of node 3 to open: each is opened once" in reason for reason in told)


@pytest.mark.parametrize("shares", [(), (b"",) * 4, (b"1" * 80,) * 4, (b"1" * 80,) * 3])
def test_shares_that_do_not_fit_cost_no_more_than_their_sender_s_part(shares):
    class Careless(Mod):
        def outgoing(self, ctx, to, message):
            return replace(message, shares=shares) if ctx.me == 3 and isinstance(message, Masked) else message

    outcome = run(secure(rounds=2), mods=[Careless()])
    assert senders(outcome) == {node: [4, 4] if node == 3 else [3, 3] for node in range(5)}


def test_whoever_opens_nonsense_costs_the_sum_and_ends_nobody():
    class Nonsense(Mod):
        def outgoing(self, ctx, to, message):
            if ctx.me == 0 and isinstance(message, Opened):
                return replace(message, shares=b"\1" * len(message.shares))
            return message

    with capture_logs() as logs:
        outcome = run(secure(rounds=2), mods=[Nonsense()])
    assert senders(outcome) == {node: [4, 4] if node == 0 else [0, 0] for node in range(5)}
    assert {line["reason"] for line in logs} == {"it is not what honest senders make"}
